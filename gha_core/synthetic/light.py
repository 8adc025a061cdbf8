"""Soft light on moving geometry: many distant lamps, each with a shadow map per timestep."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.cameras import look_at
from gha_core.mesh_rasterisation import rasterize
from gha_core.synthetic.studio import Light

Floats = NDArray[np.floating]

FAR = 25.0  # m, distance of the shadow cameras: nearly parallel light
EXTENT = 0.62  # m, what a shadow map covers
MAP = 136  # px
TAP = 0.6  # px, from the middle of four looks at the map: softens shadow edges


@dataclass(frozen=True)
class Lamps:
    """Point samples of the soft boxes and of the room.

    Attributes:
        directions: [L, 3] unit, towards the lamp.
        radiance: [L, 3] linear RGB.
        is_key: [L] 1 for samples of the key light (its highlights are mirrored in eyes and skin).
    """

    directions: Floats
    radiance: Floats
    is_key: Floats


def sample_lamps(
    lights: list[Light], ambient: Floats, rng: np.random.Generator, per_light: tuple[int, ...]
) -> Lamps:
    """``per_light`` samples of each light, and its last entry for the room's dome."""
    directions, radiance, key = [], [], []
    for index, (light, count) in enumerate(zip(lights, per_light, strict=False)):
        turn = rng.uniform(0, 2 * np.pi)
        for k in range(count):
            r = light.spread * np.sqrt((k + 0.5) / count)
            phi = turn + k * np.pi * (3 - np.sqrt(5))
            side = np.cross(light.direction, [0, 1.0, 0])
            side /= np.linalg.norm(side)
            up = np.cross(side, light.direction)
            d = light.direction + np.tan(r) * (np.cos(phi) * side + np.sin(phi) * up)
            directions.append(d / np.linalg.norm(d))
            radiance.append(light.radiance / count)
            key.append(float(index == 0))
    count = per_light[-1]
    for k in range(count):
        y = 1 - (k + 0.5) / count * 1.75  # little comes from the floor
        phi = k * np.pi * (3 - np.sqrt(5))
        r = np.sqrt(max(0.0, 1 - y * y))
        directions.append(np.array([r * np.cos(phi), y, r * np.sin(phi)]))
        radiance.append(ambient * 2.2 / count * (1.25 if y > 0 else 0.8))
        key.append(0.0)
    return Lamps(np.array(directions), np.array(radiance), np.array(key))


def illuminate(
    lamps: Lamps, points: Floats, normals: Floats, wrap: Floats, bias: Floats,
    occluder: Floats, occluder_faces: NDArray[np.int64], centre: Floats,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Irradiance [N, 3] / pi and visibility of the key light [N] at world points.

    Args:
        wrap: [N, 3] per channel, how far light reaches around the terminator (scattering in skin).
        bias: [N] metres that an occluder must lie nearer to the lamp to cast a shadow.
        centre: [3] middle of what the shadow maps cover.
    """
    irradiance = np.zeros((3, len(points)), np.float32)
    key = np.zeros(len(points), np.float32)
    focal = MAP * FAR / EXTENT
    K = np.array([[focal, 0, MAP / 2], [0, focal, MAP / 2], [0, 0, 1.0]])
    vertices, faces = torch.from_numpy(occluder), torch.from_numpy(occluder_faces)
    points, normals, wrap = (np.ascontiguousarray(rows.T) for rows in (points, normals, wrap))
    spread = (1 + wrap) ** 2
    for direction, radiance, is_key in zip(
        lamps.directions, lamps.radiance, lamps.is_key, strict=True
    ):
        up = np.array([0, 1.0, 0]) if abs(direction[1]) < 0.95 else np.array([1.0, 0, 0])
        w2c = look_at(np.asarray(centre + FAR * direction, float), np.asarray(centre, float), up)
        depth = rasterize(vertices, faces, K, w2c, MAP, MAP).depth.numpy()
        depth = np.where(depth > 0, depth, 2 * FAR).astype(np.float32) - np.float32(FAR)
        local = w2c[:3, :3].astype(np.float32) @ points + w2c[:3, 3:].astype(np.float32)
        x, y = local[:2] * (np.float32(focal) / local[2]) + np.float32(MAP / 2)
        z = local[2] - np.float32(FAR) - bias
        columns, rows = (
            [np.clip(at + np.float32(tap), 0, MAP - 1).astype(np.intp) for tap in (-TAP, TAP)]
            for at in (x, y)
        )
        visible = np.zeros(len(z), np.float32)
        for column, row in product(columns, rows):
            visible += np.float32(0.25) * (z <= depth.ravel().take(MAP * row + column))
        cosine = direction.astype(np.float32) @ normals
        lit = np.maximum(cosine + wrap, 0) / spread
        irradiance += radiance.astype(np.float32)[:, None] * lit * visible
        if is_key:
            key += visible
    return irradiance.T, key / max(1.0, lamps.is_key.sum())
