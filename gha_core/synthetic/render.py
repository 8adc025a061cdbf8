"""One camera's view of a stage: a fine z-buffer, then a shader per material."""

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
    towards = _unit(eye - stage.strands)
    strands, strand_faces = parts.ribbons(
        stage.strands, stage.strand_tangent, stage.strand_width, towards
    )
    # What faces away is hidden by the front (hair: well away, as the silhouette is fringed).
    front = np.flatnonzero(_facing(stage, eye) | (stage.kinds == parts.CLOTH))
    outside = _dot(stage.strand_out, towards) > -0.45
    strand_faces = strand_faces[np.repeat((outside[:, 1:] | outside[:, :-1]).ravel(), 2)]
    vertices = np.concatenate([stage.vertices, strands])
    faces = np.concatenate([stage.faces[front], strand_faces + len(stage.vertices)])
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
        colour[is_hair] = _interpolated(shaded, ends, weights.take(is_hair, 0))
    solid = np.flatnonzero((index >= 0) & (index < surfaces))
    face = front.take(index.take(solid))
    values = _interpolated(stage.attributes, stage.faces.take(face, 0), weights.take(solid, 0))
    view = _towards_camera(big, solid)
    normal = _unit(values[:, parts.NORMAL])
    kinds = stage.kinds.take(face)
    lamps = _Highlights.of(lights)
    shaders = ((parts.SKIN, _skin), (parts.EYE, _eye), (parts.TEETH, _teeth), (parts.CLOTH, _cloth))
    for kind, shader in shaders:
        chosen = np.flatnonzero(kinds == kind)
        if chosen.size:
            seen_here = (values.take(chosen, 0), normal.take(chosen, 0), view.take(chosen, 0))
            colour[solid[chosen]] = shader(actor, *seen_here, lamps)
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
    """[...] inner products of the last axes; several times faster than (a * b).sum(-1)."""
    return np.einsum("...i,...i->...", a, b)


def _unit(a: Floats) -> Floats:
    return a / np.maximum(np.sqrt(_dot(a, a)), np.float32(1e-9))[..., None]


def _towards_camera(camera: Camera, pixels: NDArray[np.int64]) -> Floats:
    """[n, 3] unit vectors in the world from what flat ``pixels`` [n] see to the camera."""
    column, row = pixels % camera.width, pixels // camera.width
    back = -camera.w2c[:3, :3].T @ np.linalg.inv(camera.K)
    grid = np.stack([column + 0.5, row + 0.5, np.ones(len(pixels))], 1).astype(np.float32)
    return _unit(grid @ back.T.astype(np.float32))


def _facing(stage: Stage, eye: Floats) -> NDArray[np.bool_]:
    """[m] whether a face shows its outside to the camera at ``eye``."""
    a, b, c = (stage.vertices.take(corner, 0) for corner in stage.faces.T)
    return np.asarray(_dot(eye - a, np.cross(b - a, c - a)) > 0)


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
        """[n, L] cosine between each light and the view's reflection."""
        mirror = (2 * _dot(normal, view))[:, None] * normal - view
        return np.clip(mirror @ self.directions.T, 0, 1)

    def gloss(self, cosine: Floats, key: Floats) -> Floats:
        """[n, 3] light of lobes ``cosine`` [n, L]; only the key light's shadow is known."""
        shadowed = cosine * np.float32(0.6)
        shadowed[:, 0] = cosine[:, 0] * key
        return shadowed @ self.radiance


def _skin(actor: Actor, values: Floats, normal: Floats, view: Floats, lamps: _Highlights) -> Floats:
    column, row = skin.texel(values[:, parts.PLACE])
    found = _look_up(actor.albedo, column, row)
    painted, cover = found[:, :3], values[:, parts.TINTED, None]
    albedo = painted + cover * (values[:, parts.TINT] - painted)
    grazing = 1 - np.clip(_dot(normal, view), 0, 1)
    fresnel = 0.032 + 0.30 * grazing * grazing * grazing * grazing * grazing
    wet = found[:, 3] * (1 - cover[:, 0])
    lobe = lamps.mirrored(normal, view)
    broad = lobe * lobe * lobe * lobe  # Phong lobes: a sheen, and the glint of moist skin
    tight = broad * broad * broad * broad * broad * broad
    both = np.float32(1.2) * broad + (0.5 + 3.0 * wet)[:, None] * tight
    gloss = (fresnel * (1 - 0.8 * cover[:, 0]))[:, None] * lamps.gloss(both, values[:, parts.KEY])
    return albedo * values[:, parts.LIGHT] + gloss


def _cloth(
    actor: Actor, values: Floats, normal: Floats, view: Floats, lamps: _Highlights
) -> Floats:
    facing = _dot(normal, view)
    rim = 1 - np.clip(facing, 0, 1)
    inside = np.where(facing < -0.05, np.float32(0.3), np.float32(1.0))  # down the collar
    shade = inside * (1 + 0.35 * rim * rim * rim)
    return values[:, parts.TINT] * values[:, parts.LIGHT] * shade[:, None]


def _teeth(
    actor: Actor, values: Floats, normal: Floats, view: Floats, lamps: _Highlights
) -> Floats:
    albedo = actor.teeth_colour(values[:, parts.PLACE])
    gloss = 0.10 * lamps.gloss(lamps.mirrored(normal, view) ** 15, values[:, parts.KEY])
    return 0.9 * albedo * values[:, parts.LIGHT] + gloss


def _eye(actor: Actor, values: Floats, normal: Floats, view: Floats, lamps: _Highlights) -> Floats:
    albedo, clear = actor.eye_colour(values[:, parts.PLACE])
    lit = values[:, parts.LIGHT]
    # the soft boxes themselves mirror in the cornea: key and fill
    edge = np.cos(0.55 * lamps.spread)
    inside = np.clip((lamps.mirrored(normal, view) - edge) / 0.012 + 0.5, 0, 1)[:, :2]
    glint = inside @ lamps.radiance[:2]
    strength = np.where(clear > 0.5, 0.85, 0.22) * np.clip(2 * lit.mean(1), 0.2, 1)
    return albedo * lit + strength[:, None] * glint


def _hair(stage: Stage, points: parts.Ints, towards: Floats, lights: list[Light]) -> Floats:
    """[n, 3] radiance of some points of the strands: diffuse, and a highlight across the strand
    (Kajiya-Kay).

    Args:
        points: [n] their places among all S * P.
        towards: [S, P, 3] unit vectors to the camera.
    """

    def of_points(values: Floats) -> Floats:
        return values.reshape(stage.strand_width.size, -1).take(points, 0)

    view, tangent = of_points(towards), of_points(stage.strand_tangent)
    colour, lit = of_points(stage.strand_colour), of_points(stage.strand_light)
    key, ambient = of_points(stage.strand_key)[:, 0], lit.mean(-1)
    radiance = colour * lit * np.float32(1.15)
    tone = 0.035 + 0.55 * colour
    for number, light in enumerate(lights):
        half = view + light.direction.astype(np.float32)
        along = _dot(tangent, half)
        across2 = np.clip(1 - along * along / _dot(half, half), 0, 1)
        lobe = across2 * across2 * across2 * across2 * across2
        lobe = np.float32(0.55) * lobe * lobe * lobe * lobe  # sine to the 40th power
        lobe *= key if number == 0 else ambient
        radiance += lobe[..., None] * tone * light.radiance.astype(np.float32)
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
