"""Who the demo person is: a head shape and an appearance, drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gha_core.faces import FaceModel

Array = NDArray[np.float64]

# sRGB 0..255 from pale to deep, with the matching lips.
SKIN_TONES = np.array(
    [[228, 190, 166], [220, 177, 148], [205, 157, 125], [176, 126, 94], [134, 90, 64], [92, 60, 43]]
)
LIP_TONES = np.array(
    [[199, 116, 110], [190, 106, 98], [170, 92, 82], [143, 76, 66], [112, 62, 54], [86, 50, 46]]
)
HAIR_COLOURS = {
    "black": (32, 26, 24),
    "dark brown": (58, 40, 30),
    "brown": (92, 64, 44),
    "auburn": (110, 58, 36),
    "blond": (176, 138, 92),
    "grey": (140, 136, 132),
}
IRIS_COLOURS = {
    "brown": (92, 56, 30),
    "hazel": (118, 92, 50),
    "green": (92, 116, 78),
    "blue": (92, 130, 160),
    "grey": (120, 132, 140),
}
SHIRTS = ((46, 62, 96), (120, 40, 48), (58, 92, 84), (74, 74, 80), (150, 140, 126), (92, 70, 110))
STYLES = {"woman": ("bob", "long", "bun", "side"), "man": ("crop", "side", "back", "crop")}


@dataclass(frozen=True)
class Person:
    """Colours are linear RGB in 0..1.

    Attributes:
        identity: [I] coefficients of the face model.
        sex: "woman" or "man"; it steers shape, hair, brows and stubble.
        tone: 0 (pale) .. 1 (deep skin).
        freckles, stubble: 0..1.
        hair_style: a key of :data:`gha_core.synthetic.hair.STYLES`.
        head_length: chin to crown, metres.
        seed: of everything drawn later (strands, pores).
    """

    identity: NDArray[np.float32]
    sex: str
    tone: float
    skin: Array
    lips: Array
    hair: Array
    hair_style: str
    iris: Array
    shirt: Array
    freckles: float
    stubble: float
    brow_weight: float
    head_length: float
    seed: int

    def neutral(self, model: FaceModel) -> Array:
        """[V, 3] the head at rest, head space."""
        rest = torch.zeros(len(model.expression_names))
        return model.vertices(torch.from_numpy(self.identity), rest).numpy().astype(float)


def linear(srgb: Array | tuple[int, ...]) -> Array:
    """sRGB 0..255 to linear light 0..1 (IEC 61966-2-1)."""
    value = np.asarray(srgb, float) / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def draw_person(seed: int, model: FaceModel, sex_direction: Array) -> Person:
    """The person of ``seed``.

    Args:
        sex_direction: [I] from man to woman in the model's identity coefficients.
    """
    rng = np.random.default_rng([seed, 1])
    sex = "woman" if rng.random() < 0.5 else "man"
    identity = np.clip(rng.normal(0, 0.65, len(model.identity_basis)), -1.5, 1.5)
    along = sex_direction / np.linalg.norm(sex_direction)
    wanted = np.linalg.norm(sex_direction) * (0.8 if sex == "woman" else -0.6)
    identity += (wanted - identity @ along) * along
    tone = float(0.06 + 0.94 * rng.beta(1.1, 1.6))
    steps = np.arange(len(SKIN_TONES)) / (len(SKIN_TONES) - 1)
    skin = np.array([np.interp(tone, steps, SKIN_TONES[:, c]) for c in range(3)])
    skin += rng.normal(0, 2.5, 3)
    lips = np.array([np.interp(tone, steps, LIP_TONES[:, c]) for c in range(3)])
    if sex == "woman" and rng.random() < 0.4:  # lipstick
        lips = 0.5 * lips + 0.5 * np.array([rng.uniform(150, 190), 50, rng.uniform(60, 90)])
    dark_hair = ("black", "black", "dark brown")
    names = dark_hair if tone > 0.5 else ("black", *list(HAIR_COLOURS)[1:])
    hair = np.array(HAIR_COLOURS[str(rng.choice(names))]) * rng.uniform(0.9, 1.1)
    irises = ("brown", "brown", "hazel") if tone > 0.45 else tuple(IRIS_COLOURS)
    return Person(
        identity=identity.astype(np.float32),
        sex=sex,
        tone=tone,
        skin=linear(skin),
        lips=linear(lips),
        hair=linear(hair),
        hair_style=str(rng.choice(STYLES[sex])),
        iris=linear(IRIS_COLOURS[str(rng.choice(irises))]),
        shirt=linear(SHIRTS[rng.integers(len(SHIRTS))]),
        freckles=float(rng.beta(0.6, 1.6)) * (1.0 - tone),
        stubble=float(rng.uniform(0.15, 0.8)) if sex == "man" else 0.0,
        brow_weight=float(rng.uniform(0.9, 1.2) if sex == "man" else rng.uniform(0.6, 0.85)),
        head_length=float(rng.normal(0.232 if sex == "man" else 0.220, 0.004)),
        seed=seed,
    )
