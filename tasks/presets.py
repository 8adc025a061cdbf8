"""``gha preset NAME``: put a preset's values into params.yaml.

A preset is a file of ``presets/`` in the form of params.yaml that names what it changes; all else
is left. All presets name the same parameters, so that one undoes the other.
"""

from __future__ import annotations

from pathlib import Path

from gha_core.errors import ParameterError
from tasks.parameters import PARAMS_FILE, merged, read_yaml
from tasks.reference import reference

FOLDER = Path(__file__).parents[1] / "presets"


def names() -> list[str]:
    """Of all presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def use(root: Path, name: str) -> None:
    """Replace the project's ``params.yaml`` by itself with the preset's values in their places.

    Raises:
        ParameterError: there is no such preset, or it or params.yaml is not valid.
    """
    if name not in names():
        raise ParameterError(f"There is no preset {name!r}; known are: {', '.join(names())}.")
    values = merged(read_yaml(root / PARAMS_FILE), read_yaml(FOLDER / f"{name}.yaml"))
    temporary = root / f".{PARAMS_FILE}.writing"
    temporary.write_text(reference(values))
    temporary.replace(root / PARAMS_FILE)
