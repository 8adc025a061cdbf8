"""Several evaluated avatars side by side: means with confidence intervals, paired where the same
photos were scored, and pictures of the same moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_table
from gha_core.avatar import Avatar
from gha_core.dataset import Dataset, View
from gha_core.errors import GhaError
from gha_core.evaluation.catalogue import METRICS, REGIONS, TASKS
from gha_core.evaluation.report import error_map
from gha_core.splits import Splits

RESAMPLES = 2000
LEVEL = 0.95
# Of the protocol: what must agree for two scores to mean the same. The rest follows from the data.
COMPARED = (
    "resolution", "crop", "background", "masks", "regions", "metrics", "driving",
    "test_cameras", "test_sequences", "test_every", "test_last",
)  # fmt: skip

Key = tuple[str, int, str]  # sequence, timestep, camera
Name = tuple[str, str, str]  # task, region, metric


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with LEVEL confidence; NaN bounds from a single frame."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Contender:
    """One evaluated avatar.

    Attributes:
        label: what people call it here.
        artifacts: folder with its stages' folders.
    """

    label: str
    artifacts: Path

    @cached_property
    def scores(self) -> dict[Name, dict[Key, float]]:
        """Every score that is defined, by kind and view."""
        table = read_table(self.artifacts / "evaluation" / "frames.parquet", schemas.SCORES)
        found: dict[Name, dict[Key, float]] = defaultdict(dict)
        for row in table.to_pylist():
            if np.isfinite(row["value"]):
                key = (row["sequence"], row["timestep"], row["camera"])
                found[row["task"], row["region"], row["metric"]][key] = row["value"]
        return found

    @cached_property
    def protocol(self) -> dict[str, Any]:
        return read_json(self.artifacts / "evaluation" / "protocol.json")

    @cached_property
    def photos(self) -> str:
        """Hash of the photos that it was made from; equal ones can be paired."""
        lineage = read_json(self.artifacts / "avatar" / "avatar.json").get("lineage", {})
        return str(lineage.get("ingest/frames.parquet", self.label))


@dataclass(frozen=True)
class Row:
    """One kind of score of all contenders; None where a contender has none.

    Attributes:
        differences: to the first contender, over the views that both have; None for itself and
            for one of other photos.
    """

    name: Name
    values: tuple[Interval | None, ...]
    differences: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Moment:
    """The same view drawn by several avatars: (whose, caption, picture, error), photo first."""

    caption: str
    photo: Image
    drawn: tuple[tuple[str, str, Image, Image], ...]


def interval(values: Mapping[Key, float], seed: int = 0) -> Interval:
    """Mean over all views, with a bootstrap over moments: views of one timestep are of the same
    face, so they are drawn together (percentile intervals; Efron and Tibshirani 1993)."""
    moments: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (sequence, timestep, _), value in values.items():
        moments[sequence, timestep].append(value)
    sums = np.array([sum(each) for each in moments.values()])
    counts = np.array([len(each) for each in moments.values()], float)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(mean, float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES
    )
    means: NDArray[np.float64] = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def compare(contenders: Sequence[Contender]) -> list[Row]:
    """All scores that any of them has, hardest task first."""
    first = contenders[0]
    rows = []
    for name in ((t, r, m) for t in TASKS for r in REGIONS for m in METRICS):
        found = [each.scores.get(name, {}) for each in contenders]
        if not any(found):
            continue
        differences: list[Interval | None] = [None]
        for contender, values in zip(contenders[1:], found[1:], strict=True):
            both = found[0].keys() & values.keys() if contender.photos == first.photos else set()
            pairs = {key: values[key] - found[0][key] for key in sorted(both)}
            differences.append(interval(pairs) if pairs else None)
        means = tuple(interval(values) if values else None for values in found)
        rows.append(Row(name, means, tuple(differences)))
    return rows


def disagreements(contenders: Sequence[Contender]) -> list[str]:
    """In what the protocols differ from that of the first, a sentence each."""
    first = contenders[0]
    said = []
    for other in contenders[1:]:
        for part in COMPARED:
            for what, mine, theirs in _unequal(first.protocol, other.protocol, part):
                said.append(
                    f"Not the same protocol, {what}: {first.label} {_short(mine)}, "
                    f"{other.label} {_short(theirs)}."
                )
        if other.photos != first.photos:
            said.append(
                f"{other.label} was made from other photos than {first.label}: their scores are "
                "side by side, but no difference is drawn from them."
            )
    return said


def moments(contenders: Sequence[Contender], task: str) -> tuple[list[Moment], list[str]]:
    """Worst and median views of each group of contenders that share their photos, by the mean head
    PSNR of the group, and where two of a group differ most; and why some could not be drawn."""
    groups: dict[str, list[Contender]] = defaultdict(list)
    for contender in contenders:
        groups[contender.photos].append(contender)
    shown: list[Moment] = []
    problems: list[str] = []
    for group in groups.values():
        chosen = _chosen(group, task)
        artists = []
        for contender in group if chosen else ():
            try:
                artists.append((contender, _Artist(contender.artifacts)))
            except (GhaError, OSError, TypeError, KeyError) as error:
                problems.append(f"{contender.label} cannot be drawn by this code: {error}")
        for what, key in chosen.items() if artists else ():
            shown.append(_moment(what, key, task, artists))
    return shown, problems


class _Artist:
    """Draws what one contender makes of its own tracked motion."""

    def __init__(self, artifacts: Path) -> None:
        ingest, matting, tracking = (artifacts / s for s in ("ingest", "matting", "tracking"))
        self.dataset = Dataset(ingest, matting, tracking, Splits())
        self.avatar = Avatar.load(artifacts / "avatar")
        self.views = {view.key: view for view in self.dataset.views}

    def draw(self, view: View) -> Image:
        return self.avatar.render(self.dataset.cameras[view.camera], *view.motion)[0]


def _chosen(group: Sequence[Contender], task: str) -> dict[str, Key]:
    scores = [each.scores.get((task, "head", "psnr"), {}) for each in group]
    keys = sorted(set.intersection(*(set(each) for each in scores)))
    if not keys:
        return {}
    ranked = sorted(keys, key=lambda key: np.mean([each[key] for each in scores]))
    chosen = {"worst": ranked[0], "median": ranked[len(ranked) // 2]}
    if len(group) > 1:
        spread = {key: np.ptp([each[key] for each in scores]) for key in keys}
        chosen["largest difference"] = max(keys, key=lambda key: spread[key])
    return chosen


def _moment(what: str, key: Key, task: str, artists: Sequence[tuple[Contender, _Artist]]) -> Moment:
    _, first = artists[0]
    photo = first.dataset.over_white(first.views[key])
    drawn = []
    for contender, artist in artists:
        image = artist.draw(artist.views.get(key, first.views[key]))
        value = contender.scores[task, "head", "psnr"][key]
        drawn.append((contender.label, f"{value:.2f} dB", image, error_map(photo, image)))
    caption = f"{what}: {key[0]}, timestep {key[1]}, camera {key[2]}"
    return Moment(caption, photo, tuple(drawn))


def _unequal(
    first: Mapping[str, Any], other: Mapping[str, Any], part: str
) -> Iterator[tuple[str, Any, Any]]:
    """What both state about ``part``, differently."""
    mine, theirs, what = first.get(part), other.get(part), part.replace("_", " ")
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(mine.keys() & theirs.keys()):
            yield from ((f"{what} {inner}", a, b) for inner, a, b in _unequal(mine, theirs, key))
    elif mine is not None and theirs is not None and mine != theirs:
        yield what, mine, theirs


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
