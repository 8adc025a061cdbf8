"""One camera's view of a stage: a fine z-buffer, then a shader per material.

What belongs to pixels or strands has its channels first: NumPy is slow over axes of length 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gha_core.cameras import Camera
from gha_core.mesh_rasterisation import rasterize
from gha_core.synthetic import actor as parts
from gha_core.synthetic import skin
from gha_core.synthetic.actor import Actor, Stage
from gha_core.synthetic.studio import Light

Floats = NDArray[np.floating]
SUPERSAMPLING = 1.5  # enough behind this lens, and a third faster than 2
LENS = 0.5  # px, standard deviation of the lens's blur; without one, strands of hair alias


@dataclass(frozen=True)
class Picture:
    """``colour`` [H, W, 3] linear RGB times alpha, ``alpha`` [H, W] coverage."""

    colour: Floats
    alpha: Floats


def render(actor: Actor, stage: Stage, camera: Camera, lights: list[Light]) -> Picture:
    big = camera.resized(round(camera.width * SUPERSAMPLING), round(camera.height * SUPERSAMPLING))
    eye = camera.centre.astype(np.float32)
    towards = _unit(eye[:, None, None] - stage.strands)
    strands = parts.ribbons(stage.strands, stage.strand_tangent, towards, stage.strand_width)
    # What faces away is hidden by the front (hair: well away, as the silhouette is fringed).
    outwards = _dot(eye[:, None] - stage.face_corner, stage.face_normal) > 0
    front = np.flatnonzero(outwards | (stage.kinds == parts.CLOTH))
    outside = _dot(stage.strand_out, towards) > -0.45
    pieces = np.flatnonzero(outside[:, 1:] | outside[:, :-1])
    strand_faces = stage.strand_faces.take(pieces, 0).reshape(-1, 3)
    vertices = np.concatenate([stage.vertices, strands])
    faces = np.concatenate([stage.faces.take(front, 0), strand_faces + len(stage.vertices)])
    seen = rasterize(
        torch.from_numpy(vertices), torch.from_numpy(faces), big.K, big.w2c, big.width, big.height
    )
    index = seen.face_index.numpy().ravel()
    weights = seen.barycentric.numpy().reshape(-1, 3)
    colour = np.zeros((index.size, 3), np.float32)

    surfaces = len(front)
    is_hair = np.flatnonzero(index >= surfaces)
    if is_hair.size:
        ends = strand_faces.take(index.take(is_hair) - surfaces, 0) // 2
        seen_points, ends = _numbered(ends, stage.strand_width.size)
        shaded = _hair(stage, seen_points, towards, lights)
        colour[is_hair] = _interpolated(shaded.T, ends, weights.take(is_hair, 0))
    solid = np.flatnonzero((index >= 0) & (index < surfaces))
    face = front.take(index.take(solid))
    kinds = stage.kinds.take(face)
    lamps = _Highlights.of(lights)
    shaders = ((parts.SKIN, _skin), (parts.EYE, _eye), (parts.TEETH, _teeth), (parts.CLOTH, _cloth))
    for kind, shader in shaders:
        chosen = np.flatnonzero(kinds == kind)
        if chosen.size:
            pixels, corners = solid.take(chosen), stage.faces.take(face.take(chosen), 0)
            values = _interpolated(stage.attributes, corners, weights.take(pixels, 0))
            view = _towards_camera(big, pixels)
            colour[pixels] = shader(actor, np.ascontiguousarray(values.T), view, lamps).T
    shape = (big.height, big.width)
    size = (camera.width, camera.height)
    covered = (index >= 0).astype(np.float32).reshape(shape)
    picture = np.minimum(colour, 1.0).reshape(*shape, 3)
    return Picture(_through_the_lens(picture, size), _through_the_lens(covered, size))


def _numbered(used: parts.Ints, count: int) -> tuple[parts.Ints, parts.Ints]:
    """Those of ``count`` things that occur in ``used``, and ``used`` as places among them."""
    occurs = np.zeros(count, bool)
    occurs[used] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1).take(used)


def _interpolated(values: Floats, corners: parts.Ints, weights: Floats) -> Floats:
    """[n, C]: values [V, C] at ``corners`` [n, 3] in the proportions ``weights`` [n, 3]."""
    # A product with a sparse matrix: gathering the corners' values first would take twice as long.
    starts = np.arange(0, corners.size + 1, 3, dtype=np.int32)
    shape = (len(corners), len(values))
    columns = corners.ravel().astype(np.int32)
    return np.asarray(csr_array((weights.ravel(), columns, starts), shape) @ values)


def _through_the_lens(big: Floats, size: tuple[int, int]) -> Floats:
    blurred = cv2.GaussianBlur(big, (0, 0), LENS * SUPERSAMPLING, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_AREA), np.float32)


def _dot(a: Floats, b: Floats) -> Floats:
    """[...] inner products of the first axes, of length 3."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(a: Floats) -> Floats:
    return a / np.maximum(np.sqrt(_dot(a, a)), np.float32(1e-9))


def _towards_camera(camera: Camera, pixels: NDArray[np.int64]) -> Floats:
    """[3, n] unit vectors in the world from what flat ``pixels`` [n] see to the camera."""
    row, column = np.divmod(pixels, camera.width)
    back = -camera.w2c[:3, :3].T @ np.linalg.inv(camera.K)
    grid = np.stack([column + 0.5, row + 0.5, np.ones(len(pixels))]).astype(np.float32)
    return _unit(back.astype(np.float32) @ grid)


@dataclass(frozen=True)
class _Highlights:
    """The lights' directions [L, 3], radiance [L, 3] and half angles [L]; the key comes first."""

    directions: Floats
    radiance: Floats
    spread: Floats

    @staticmethod
    def of(lights: list[Light]) -> _Highlights:
        return _Highlights(
            *(
                np.array([getattr(light, name) for light in lights], np.float32)
                for name in ("direction", "radiance", "spread")
            )
        )

    def mirrored(self, normal: Floats, view: Floats) -> Floats:
        """[L, n] cosine between each light and the view's reflection."""
        mirror = 2 * _dot(normal, view) * normal - view
        return np.clip(self.directions @ mirror, 0, 1)

    def gloss(self, cosine: Floats, key: Floats) -> Floats:
        """[3, n] light of lobes ``cosine`` [L, n]; only the key light's shadow is known."""
        shadowed = cosine * np.float32(0.6)
        shadowed[0] = cosine[0] * key
        return self.radiance.T @ shadowed


def _skin(actor: Actor, seen: Floats, view: Floats, lamps: _Highlights) -> Floats:
    column, row = skin.texel(seen[parts.PLACE].T)
    found = np.ascontiguousarray(_look_up(actor.albedo, column, row).T)
    painted, cover = found[:3], seen[parts.TINTED]
    albedo = painted + cover * (seen[parts.TINT] - painted)
    normal = _unit(seen[parts.NORMAL])
    grazing = 1 - np.clip(_dot(normal, view), 0, 1)
    fresnel = 0.032 + 0.30 * grazing * grazing * grazing * grazing * grazing
    wet = found[3] * (1 - cover)
    lobe = lamps.mirrored(normal, view)
    broad = lobe * lobe * lobe * lobe  # Phong lobes: a sheen, and the glint of moist skin
    tight = broad * broad * broad * broad * broad * broad
    both = np.float32(1.2) * broad + (0.5 + 3.0 * wet) * tight
    gloss = fresnel * (1 - 0.8 * cover) * lamps.gloss(both, seen[parts.KEY])
    return albedo * seen[parts.LIGHT] + gloss


def _cloth(actor: Actor, seen: Floats, view: Floats, lamps: _Highlights) -> Floats:
    facing = _dot(_unit(seen[parts.NORMAL]), view)
    rim = 1 - np.clip(facing, 0, 1)
    inside = np.where(facing < -0.05, np.float32(0.3), np.float32(1.0))  # down the collar
    shade = inside * (1 + 0.35 * rim * rim * rim)
    return seen[parts.TINT] * seen[parts.LIGHT] * shade


def _teeth(actor: Actor, seen: Floats, view: Floats, lamps: _Highlights) -> Floats:
    albedo = actor.teeth_colour(seen[parts.PLACE].T).T
    mirrored = lamps.mirrored(_unit(seen[parts.NORMAL]), view)
    gloss = 0.10 * lamps.gloss(mirrored**15, seen[parts.KEY])
    return 0.9 * albedo * seen[parts.LIGHT] + gloss


def _eye(actor: Actor, seen: Floats, view: Floats, lamps: _Highlights) -> Floats:
    albedo, clear = actor.eye_colour(seen[parts.PLACE].T)
    lit = seen[parts.LIGHT]
    # the soft boxes themselves mirror in the cornea: key and fill
    edge = np.cos(0.55 * lamps.spread)[:, None]
    mirrored = lamps.mirrored(_unit(seen[parts.NORMAL]), view)
    inside = np.clip((mirrored - edge) / 0.012 + 0.5, 0, 1)[:2]
    glint = lamps.radiance[:2].T @ inside
    strength = np.where(clear > 0.5, 0.85, 0.22) * np.clip(2 * lit.mean(0), 0.2, 1)
    return albedo.T * lit + strength * glint


def _hair(stage: Stage, points: parts.Ints, towards: Floats, lights: list[Light]) -> Floats:
    """[3, n] radiance of some points of the strands: diffuse, and a highlight across the strand
    (Kajiya-Kay).

    Args:
        points: [n] their places among all S * P.
        towards: [3, S, P] unit vectors to the camera.
    """

    def of_points(values: Floats) -> Floats:
        return values.reshape(-1, stage.strand_width.size).take(points, 1)

    view, tangent = of_points(towards), of_points(stage.strand_tangent)
    colour, lit = of_points(stage.strand_colour), of_points(stage.strand_light)
    key, ambient = of_points(stage.strand_key)[0], lit.mean(0)
    radiance = colour * lit * np.float32(1.15)
    tone = 0.035 + 0.55 * colour
    for number, light in enumerate(lights):
        half = view + light.direction.astype(np.float32)[:, None]
        along = _dot(tangent, half)
        across2 = np.clip(1 - along * along / _dot(half, half), 0, 1)
        lobe = across2 * across2 * across2 * across2 * across2
        lobe = np.float32(0.55) * lobe * lobe * lobe * lobe  # sine to the 40th power
        lobe *= key if number == 0 else ambient
        radiance += lobe * tone * light.radiance.astype(np.float32)[:, None]
    return radiance


def _look_up(texture: Floats, column: Floats, row: Floats) -> Floats:
    """Bilinear [n, C] at texels; cv2 wants maps narrower than 32768."""
    count = len(column)
    wide = 4096
    rows = -(-count // wide)
    maps = np.zeros((2, rows * wide), np.float32)
    maps[0, :count], maps[1, :count] = column, row
    x, y = maps.reshape(2, rows, wide)
    found = cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32).reshape(-1, texture.shape[2])[:count]
