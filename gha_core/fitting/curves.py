"""What a tracked face does over time, as one picture: blinks, mouth, gaze, pose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from gha_core.artifacts.images import Image

Floats = NDArray[np.float64]

_DPI, _ROW = 100, 1.15  # inches
_SHOWN: Mapping[str, Mapping[str, tuple[tuple[str, float], ...]]] = {
    "eyes": {
        "blink, left": (("eyeBlinkLeft", 1.0),),
        "blink, right": (("eyeBlinkRight", 1.0),),
    },
    "mouth": {
        "open": (("jawOpen", 1.0),),
        "smile": (("mouthSmileLeft", 0.5), ("mouthSmileRight", 0.5)),
        "pucker": (("mouthPucker", 1.0),),
    },
    "brows": {
        "inner up": (("browInnerUp", 1.0),),
        "down": (("browDownLeft", 0.5), ("browDownRight", 0.5)),
    },
    "gaze": {
        "to its left": (
            *(("eyeLookOutLeft", 0.5), ("eyeLookInRight", 0.5)),
            *(("eyeLookInLeft", -0.5), ("eyeLookOutRight", -0.5)),
        ),
        "up": (
            *(("eyeLookUpLeft", 0.5), ("eyeLookUpRight", 0.5)),
            *(("eyeLookDownLeft", -0.5), ("eyeLookDownRight", -0.5)),
        ),
    },
}


def draw_curves(
    sequences: Sequence[str],
    timesteps: Sequence[int],
    expression: Floats,
    names: Sequence[str],
    rotation: Floats,
    width: int,
) -> Image:
    """Curves of the main movements, the sequences side by side; gaps where no timestep is.

    Args:
        sequences, timesteps: of the T rows, sorted.
        expression: [T, E] coefficients; names: of the E.
        rotation: [T, 3] axis-angle of the head, shown as what it turns from its mean.
        width: of the picture, px.
    """
    places, ends = _places(sequences, timesteps)
    figure = Figure((width / _DPI, _ROW * (len(_SHOWN) + 1)), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    rows = figure.subplots(len(_SHOWN) + 1, sharex=True)
    for axes, (title, lines) in zip(rows, _SHOWN.items(), strict=False):
        for label, mix in lines.items():
            axes.plot(*_broken(places, _mixed(expression, names, mix)), linewidth=1, label=label)
        axes.set_ylabel(title)
        axes.set_ylim(-1.05 if title == "gaze" else -0.05, 1.05)
    for turn, label in zip(_turns(rotation).T, ("nod", "shake", "tilt"), strict=True):
        rows[-1].plot(*_broken(places, turn), linewidth=1, label=label)
    rows[-1].set_ylabel("head, °")
    rows[-1].set_xlabel("timesteps: " + ", ".join(dict.fromkeys(sequences)))
    for axes in rows:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.tick_params(labelsize=7)
        for end in ends[:-1]:
            axes.axvline(end, color="black", linewidth=0.8)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _mixed(expression: Floats, names: Sequence[str], mix: Sequence[tuple[str, float]]) -> Floats:
    known = [(names.index(name), share) for name, share in mix if name in names]
    return sum((share * expression[:, at] for at, share in known), np.zeros(len(expression)))


def _turns(rotation: Floats) -> Floats:
    """[T, 3] degrees about the head's own axes, from its mean rotation."""
    turns = Rotation.from_rotvec(rotation)
    return np.degrees((turns.mean().inv() * turns).as_rotvec())


def _places(sequences: Sequence[str], timesteps: Sequence[int]) -> tuple[Floats, list[float]]:
    """[T] places along the axis, and where the sequences end."""
    places, ends, start = np.array(timesteps, float), [], 0.0
    names = np.array(sequences)
    for name in dict.fromkeys(sequences):
        own = names == name
        places[own] += start - places[own].min()
        start = float(places[own].max()) + 1
        ends.append(start - 0.5)
    return places, ends


def _broken(places: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The curve with a NaN in every gap, where it must not be drawn."""
    steps = np.diff(places)
    gaps = np.flatnonzero(steps > 3 * np.median(steps)) + 1 if len(steps) else np.array([], int)
    return np.insert(places, gaps, np.nan), np.insert(values, gaps, np.nan)
