"""Files of ARKit coefficients: CSV and JSON as apps write them, and our own CSV.

Names are taken as Live Link Face (``EyeBlinkLeft``), MediaPipe (``eyeBlinkLeft``) and Face Cap
(``eyeBlink_L``) spell them. Apps give coefficients relative to the face at rest. Our own CSV has
the tracked pose of the head, too: driving with it gives the frames of driving with the tracking.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from gha_core.errors import ParameterError
from gha_core.pose import HeadPose
from gha_core.reenactment.motion import Motion

SUFFIXES = (".csv", ".json")
ARKIT = (
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight"),
    *("eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight"),
    *("eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight"),
    *("eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft"),
    *("jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight"),
    *("mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft"),
    *("mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *("mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)
# Of Live Link Face, rad, about ARKit's axes, which are those of head space.
_TURN = ("headPitch", "headYaw", "headRoll")
# Our own, as in tracking.parquet: axis-angle (rad), place (m), metres per head length.
_POSE = (
    *("headRotationX", "headRotationY", "headRotationZ"),
    *("headX", "headY", "headZ", "headScale"),
)
_KEY = ("subject", "sequence", "timestep", "time")
# What apps write besides, which drives nothing: the eyes' turn is in the eyeLook coefficients.
_IGNORED = (
    *("timecode", "blendshapeCount", "neutral", "timestamp", "index"),
    *("leftEyeYaw", "leftEyePitch", "leftEyeRoll"),
    *("rightEyeYaw", "rightEyePitch", "rightEyeRoll"),
)
_LEAST, _MOST = -0.5, 2.0  # apps overshoot 0..1 a little; percentages are something else
_USUAL_RATE = 60.0  # per second, of Live Link Face

Row = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """What a file says.

    Attributes:
        motions: with coefficients in the order of ``names``.
        rate: motions per second.
        subject: the person that our own tracking saw; None for an app's file, whose coefficients
            are relative to the face at rest.
    """

    motions: list[Motion]
    names: tuple[str, ...]
    rate: float
    subject: str | None


def read_coefficients(path: Path, own: Sequence[str] = ()) -> Recording:
    """Read a CSV or JSON of ARKit coefficients; those that it does not have are 0.

    Args:
        own: names that the avatar's face model has and ARKit has not.

    JSON is a list of timesteps, or an object with one under ``frames``: each an object of
    coefficients by name, or a list of ``{categoryName, score}`` as MediaPipe gives them.

    Raises:
        ParameterError: the file is unreadable, has no coefficients, unknown columns, something that
            is not a number, or numbers far from 0..1. The text says in which row and column.
    """
    try:
        rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ParameterError(f"{path} cannot be read ({error}).") from None
    if not rows:
        raise ParameterError(f"{path} has no timestep: there is nothing to drive with.")
    names = tuple(dict.fromkeys((*ARKIT, *own)))
    columns = _columns(path, rows, names)
    if not set(columns.values()) & set(names):
        raise ParameterError(
            f"{path} has none of ARKit's coefficients (jawOpen, eyeBlinkLeft, …). It has: "
            f"{', '.join(map(str, list(columns)[:8])) or 'nothing'}."
        )
    named = [{columns[name]: value for name, value in row.items() if columns[name]} for row in rows]
    motions = [_motion(path, index, row, names) for index, row in enumerate(named)]
    subject = named[0].get("subject")
    rate = _rate(path, named, rows)
    return Recording(motions, names, rate, str(subject) if subject else None)


def write_coefficients(
    path: Path, subject: str, motions: Sequence[Motion], names: Sequence[str], rate: float
) -> None:
    """Write our own CSV; :func:`read_coefficients` gives back every bit of it.

    Args:
        names: of the coefficients.
    """
    temporary = path.with_name(f".{path.name}.writing")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow([*_KEY, *names, *_POSE])
            for index, motion in enumerate(motions):
                pose = motion.pose
                table.writerow(
                    [
                        *(subject, motion.sequence, motion.timestep, repr(index / rate)),
                        *(str(value) for value in motion.expression),
                        *(repr(float(value)) for value in (*pose.rotation, *pose.translation)),
                        repr(float(pose.scale)),
                    ]
                )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def canonical(name: str) -> str:
    """A name without what apps spell differently: ``eyeBlink_L`` and ``EyeBlinkLeft`` are one."""
    sided = re.sub(r"_([LR])$", lambda end: {"L": "Left", "R": "Right"}[end[1]], name.strip())
    return re.sub(r"[^a-z0-9]", "", sided.lower())


_BY_CANONICAL = {canonical(name): name for name in (*ARKIT, *_TURN, *_POSE, *_KEY)}
_BY_CANONICAL |= {canonical(name): "" for name in _IGNORED}


def _columns(path: Path, rows: Sequence[Row], names: Sequence[str]) -> dict[str, str]:
    """The file's names -> ours, "" for those that drive nothing."""
    ours_by = {canonical(name): name for name in names} | _BY_CANONICAL
    found = dict.fromkeys(name for row in rows for name in row)
    columns = {name: ours_by.get(canonical(name)) for name in found}
    unknown = [name for name, ours in columns.items() if ours is None]
    if unknown:
        near = difflib.get_close_matches(canonical(unknown[0]), ours_by, 1)
        guess = f" Did you mean {ours_by[near[0]] or near[0]}?" if near else ""
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ParameterError(
            f"{path} has columns that are no ARKit coefficients: {', '.join(unknown[:3])}{more}."
            f"{guess} Rename or remove them."
        )
    known = {name: ours for name, ours in columns.items() if ours is not None}
    meant: dict[str, str] = {}
    for name, ours in known.items():
        if ours and ours in meant:
            raise ParameterError(f"{path}: columns {meant[ours]} and {name} mean the same.")
        meant[ours] = name
    return known


def _motion(path: Path, index: int, row: Row, names: Sequence[str]) -> Motion:
    def number(name: str) -> float:
        value = row.get(name)
        try:
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise ParameterError(
                f"{path}, timestep {index + 1}, {name}: {value!r} is not a number. Fill the gap or "
                "remove the timestep."
            )
        return found

    expression = np.array([number(name) if name in row else 0.0 for name in names], np.float32)
    arkit = expression[: len(ARKIT)]
    for name, value in zip(ARKIT, arkit, strict=True):
        if not _LEAST <= value <= _MOST:
            raise ParameterError(
                f"{path}, timestep {index + 1}, {name}: {value:g}; coefficients go from 0 to 1."
            )
    if all(name in row for name in _POSE):
        values = np.array([number(name) for name in _POSE])
        if values[6] <= 0:
            raise ParameterError(
                f"{path}, timestep {index + 1}, headScale: {values[6]:g}; it must be positive."
            )
        pose = HeadPose(values[:3], values[3:6], float(values[6]))
    else:
        pitch, yaw, roll = (number(name) if name in row else 0.0 for name in _TURN)
        turn = Rotation.from_euler("YXZ", [yaw, pitch, roll]).as_rotvec()
        pose = HeadPose(turn, np.zeros(3), 1.0)
    timestep = int(number("timestep")) if "timestep" in row else index
    np.clip(arkit, 0, 1, out=arkit)  # overshoot is an app's; our own tracking stays inside
    return Motion(str(row.get("sequence", "")), timestep, pose, expression)


def _rate(path: Path, named: Sequence[Row], rows: Sequence[Row]) -> float:
    """Timesteps per second, from the times, or from the seconds of timecodes."""
    if all("time" in row for row in named) and len(named) > 1:
        try:
            steps = np.diff([float(row["time"]) for row in named])
        except (TypeError, ValueError):
            steps = np.zeros(1)
        step = float(np.median(steps))
        if not (math.isfinite(step) and step > 0):
            raise ParameterError(f"{path}: the column time does not hold growing seconds.")
        return 1.0 / step
    codes = [value for row in rows for name, value in row.items() if canonical(name) == "timecode"]
    seconds = [code.rsplit(":", 1)[0] for code in codes if isinstance(code, str)]
    changes = [i for i in range(1, len(seconds)) if seconds[i] != seconds[i - 1]]
    if len(changes) < 2:
        return _USUAL_RATE
    return (changes[-1] - changes[0]) / (len(changes) - 1)


def _csv_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        rows = []
        for index, line in enumerate(lines, 1):
            if not line:
                continue
            if len(line) != len(header):
                raise ParameterError(
                    f"{path}, timestep {index}: {len(line)} values, but the header names "
                    f"{len(header)} columns. Is the file cut off?"
                )
            rows.append(dict(zip(header, line, strict=True)))
    return rows


def _json_rows(path: Path) -> list[Row]:
    content = json.loads(path.read_text(encoding="utf-8"))
    frames = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(frames, list):
        raise ParameterError(f'{path} is neither a list of timesteps nor has one under "frames".')
    return [_json_row(path, index, frame) for index, frame in enumerate(frames)]


def _json_row(path: Path, index: int, frame: Any) -> Row:
    if isinstance(frame, dict):
        inner = [frame[key] for key in ("blendshapes", "categories") if key in frame]
        if not inner:
            return frame
        times = {key: value for key, value in frame.items() if key in _KEY}
        return {**times, **_json_row(path, index, inner[0])}
    if isinstance(frame, list):
        try:
            return dict(_category(item) for item in frame)
        except (TypeError, KeyError, StopIteration):
            pass
    raise ParameterError(
        f"{path}, timestep {index + 1}: neither an object of coefficients nor a list of "
        "{categoryName, score}."
    )


def _category(item: Row) -> tuple[str, Any]:
    return next(item[key] for key in ("categoryName", "category_name") if key in item), item[
        "score"
    ]
