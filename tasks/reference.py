"""``python -m tasks.reference``: params.yaml as the types declare it, with their meanings."""

from __future__ import annotations

import json
import re
import textwrap

from pydantic import BaseModel

from tasks.parameters import Values, sections

_WIDTH = 100
_COLUMN = 34

HEAD = """\
# The parameters of all stages. subjects.yaml can override each of them for one person. A change
# runs again what it concerns and nothing else. Written by: python -m tasks.reference > params.yaml

seed: {seed}  # of every random choice
"""


def reference(values: Values | None = None) -> str:
    """The text of params.yaml; what ``values`` does not name is at its default.

    Raises:
        ParameterError: an unknown section or key, or a value of the wrong type or range.
    """
    values = values or {}
    parts = [
        f"\n{name}:\n" + "".join(_lines(section, "  "))
        for name, section in sections(values).items()
    ]
    return HEAD.format(seed=values.get("seed", 0)) + "".join(parts)


def _lines(values: BaseModel, indent: str) -> list[str]:
    lines = []
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        meaning = field.description or ""
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:  # {meaning}\n", *_lines(value, indent + "  ")]
            continue
        # JSON is YAML, and leaves no doubt about what is text.
        plain = values.model_dump(mode="json")[name]
        # A number such as 1e-05 is text to some YAML readers, 1.0e-05 to none.
        text = re.sub(r"\b(\d+)e-", r"\1.0e-", json.dumps(plain))
        setting = f"{indent}{name}: {text}"
        line = f"{setting:<{_COLUMN}}  # {meaning}"
        if len(line) <= _WIDTH:
            lines.append(line + "\n")
        else:
            comment = textwrap.wrap(meaning, _WIDTH - len(indent) - 2)
            lines += [f"{indent}# {line}\n" for line in comment]
            lines.append(setting + "\n")
    return lines


if __name__ == "__main__":
    print(reference(), end="")
