"""``dvc.lock`` as a file: read, replaced in one piece, merged. Knows its layout, not DVC.

The file has one block of lines per stage. A hundred subjects make forty thousand lines, and a batch
writes it a hundred times, so blocks are cut out and put in as text; only those that are asked for
are parsed. A file of another layout (hand-written, say) is parsed as a whole.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import SafeRepresenter

from gha_core.errors import ArtifactError

LOCK_FILE = "dvc.lock"
_PARSED = Path(".dvc", "tmp", "gha", "lock.json")
_HEADER = "schema: '2.0'\nstages:\n"
_NEXT_BLOCK = re.compile(r"\n(?=(  )?\S)")
_BLOCK = re.compile(r"  ([^\s:'\"#{\[][^\s:]*):\n")

Entry = dict[str, Any]
"""What ``dvc.lock`` says about one stage: its command and the hashes of all it reads and writes."""


def read() -> dict[str, Entry]:
    """All entries by stage name; none if there is no file.

    Raises:
        ArtifactError: the file is not a lock file.
    """
    text = _text()
    blocks = _blocks(text)
    if blocks is None:
        return _parse(text)
    known = _parsed_before()
    new = {name: block for name, block in blocks.items() if block not in known}
    if new:
        parsed = _parse(_HEADER + "".join(new.values()))
        known |= {block: parsed[name] for name, block in new.items()}
        _keep_parsed({block: known[block] for block in blocks.values()})
    return {name: known[block] for name, block in blocks.items()}


def read_one(name: str) -> Entry | None:
    """The entry of one stage; None if it has none.

    Raises:
        ArtifactError: the file is not a lock file.
    """
    text = _text()
    start = text.find(f"\n  {name}:\n") if text.startswith(_HEADER) else -1
    if start < 0:
        return _parse(text).get(name) if name in text else None
    end = _NEXT_BLOCK.search(text, start + 1)
    return _parse("stages:" + text[start : end.start() if end else None]).get(name)


def update(entries: Mapping[str, Entry], gone: Iterable[str] = ()) -> None:
    """Put in ``entries`` by stage name and take out those ``gone``. Hold DVC's lock meanwhile.

    The file is replaced atomically; DVC rewrites it in place, and a kill then leaves it empty.

    Raises:
        ArtifactError: the file is not a lock file.
    """
    blocks = _all_blocks(_text())
    blocks |= {name: _block(name, entry) for name, entry in entries.items()}
    for name in gone:
        blocks.pop(name, None)
    replace(Path(LOCK_FILE), _HEADER + "".join(blocks.values()))


def merge(base: str, ours: str, theirs: str) -> str:
    """The text of a lock file that has the changes of both sides, for git's merge driver.

    Where both changed the same stage, ours stays: it is what lies in the workspace. If the merged
    code or parameters are those of the other side, that stage is stale, and its outputs come back
    from the run cache.

    Raises:
        ArtifactError: one of the three is not a lock file.
    """
    before, mine, other = (_all_blocks(text) for text in (base, ours, theirs))
    merged = {}
    for name in dict.fromkeys([*mine, *other]):
        changed = mine.get(name) != before.get(name)
        block = mine.get(name) if changed else other.get(name)
        if block is not None:
            merged[name] = block
    return _HEADER + "".join(merged.values())


def replace(path: Path, text: str) -> None:
    """Write ``text`` to ``path``: all of it or nothing."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _text() -> str:
    try:
        return Path(LOCK_FILE).read_text()
    except FileNotFoundError:
        return ""


def _blocks(text: str) -> dict[str, str] | None:
    """Stage name -> its lines; None if the layout is not the one that DVC writes."""
    if not text:
        return {}
    if not text.startswith(_HEADER) or not text.endswith("\n"):
        return None
    blocks: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in io.StringIO(text[len(_HEADER) :]):
        if line.startswith("   ") or line == "\n":
            if lines is None:
                return None
            lines.append(line)
        elif match := _BLOCK.fullmatch(line):
            lines = blocks[match[1]] = [line]
        else:
            return None
    return {name: "".join(lines) for name, lines in blocks.items()}


def _parsed_before() -> dict[str, Entry]:
    """Block -> its entry. Parsing YAML takes longer than comparing seven hundred stages."""
    try:
        return json.loads(_PARSED.read_text())
    except (OSError, ValueError):
        return {}


def _keep_parsed(entries: Mapping[str, Entry]) -> None:
    text = json.dumps(entries)
    if json.loads(text) == entries:  # no keys or values that JSON cannot keep
        with suppress(OSError):
            _PARSED.parent.mkdir(parents=True, exist_ok=True)
            replace(_PARSED, text)


def _all_blocks(text: str) -> dict[str, str]:
    blocks = _blocks(text)
    if blocks is None:
        blocks = {name: _block(name, entry) for name, entry in _parse(text).items()}
    return blocks


def _block(name: str, entry: Entry) -> str:
    yaml = YAML(typ="safe")  # in C: ten times as fast as the one that DVC writes with
    yaml.Representer = _Representer
    yaml.default_flow_style = False  # type: ignore[assignment]
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump({name: _plain(entry)}, stream)
    text = stream.getvalue().replace(": \n", ":\n")
    return "".join(f"  {line}" if line.strip() else line for line in io.StringIO(text))


class _Representer(SafeRepresenter):
    """Writes nothing for null, as DVC does."""


_Representer.add_representer(
    type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "")
)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _parse(text: str) -> dict[str, Entry]:
    try:
        content = YAML(typ="safe").load(text) or {}
    except YAMLError as error:
        cause = str(error).splitlines()[0]
        raise _unreadable(cause) from None
    stages = content.get("stages") or {} if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(e, dict) for e in stages.values()):
        raise _unreadable("it has no mapping of stages")
    return stages


def _unreadable(cause: str) -> ArtifactError:
    return ArtifactError(
        f"{LOCK_FILE} cannot be read ({cause}). Delete it: all it said comes back from the run "
        "cache at the next gha run."
    )
