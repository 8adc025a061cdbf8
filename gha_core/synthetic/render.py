"""One camera's view of a stage: a z-buffer at double resolution, then a shader per material."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.cameras import Camera
from gha_core.mesh_rasterisation import rasterize
from gha_core.synthetic import actor as parts
from gha_core.synthetic import skin
from gha_core.synthetic.actor import Actor, Stage
from gha_core.synthetic.studio import Light

Floats = NDArray[np.floating]
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Picture:
    """``colour`` [H, W, 3] linear RGB times alpha, ``alpha`` [H, W] coverage."""

    colour: Floats
    alpha: Floats


def render(actor: Actor, stage: Stage, camera: Camera, lights: list[Light]) -> Picture:
    big = camera.resized(camera.width * SUPERSAMPLING, camera.height * SUPERSAMPLING)
    eye = camera.centre.astype(np.float32)
    towards = (eye - stage.strands).astype(np.float32)
    strands, strand_faces = parts.ribbons(stage.strands, stage.strand_width, towards)
    # What faces away is hidden by the front (hair: well away, as the silhouette is fringed).
    front = np.flatnonzero(_facing(stage, eye) | (stage.kinds == parts.CLOTH))
    distance = np.sqrt((towards * towards).sum(-1))
    outside = (stage.strand_out * towards).sum(-1) > -0.45 * distance
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
        shaded = np.repeat(_hair(stage, eye, lights).reshape(-1, 3), 2, axis=0)
        corners = shaded[strand_faces[index[is_hair] - surfaces]]
        colour[is_hair] = np.einsum("nk,nkc->nc", weights[is_hair], corners)
    solid = np.flatnonzero((index >= 0) & (index < surfaces))
    face = front[index[solid]]
    values = np.einsum("nk,nka->na", weights[solid], stage.corners[face])
    points = np.einsum("nk,nkc->nc", weights[solid], stage.vertices[stage.faces[face]])
    view = eye - points
    view /= np.sqrt((view * view).sum(1, keepdims=True))
    normal = values[:, parts.NORMAL]
    normal = normal / np.maximum(np.sqrt((normal * normal).sum(1, keepdims=True)), 1e-6)
    kinds = stage.kinds[face]
    shaders = ((parts.SKIN, _skin), (parts.EYE, _eye), (parts.TEETH, _teeth), (parts.CLOTH, _cloth))
    for kind, shader in shaders:
        chosen = np.flatnonzero(kinds == kind)
        if chosen.size:
            colour[solid[chosen]] = shader(
                actor, values[chosen], normal[chosen], view[chosen], lights
            )
    shape = (big.height, big.width)
    size = (camera.width, camera.height)
    covered = (index >= 0).astype(np.float32).reshape(shape)
    picture = np.minimum(colour, 1.0).reshape(*shape, 3)
    return Picture(
        np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.float32),
        np.asarray(cv2.resize(covered, size, interpolation=cv2.INTER_AREA), np.float32),
    )


def _facing(stage: Stage, eye: Floats) -> NDArray[np.bool_]:
    """[m] whether a face shows its outside to the camera at ``eye``."""
    corner = stage.vertices[stage.faces]
    across = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    return np.asarray(((eye - corner[:, 0]) * across).sum(1) > 0)


def _highlight(
    normal: Floats, view: Floats, lights: list[Light], power: float, key: Floats
) -> Floats:
    """[n, 3] Blinn-Phong highlights; only the key light's is shadowed."""
    total = np.zeros_like(normal)
    for number, light in enumerate(lights):
        half = view + light.direction.astype(np.float32)
        half /= np.sqrt((half * half).sum(1, keepdims=True))
        cosine = np.clip((normal * half).sum(1), 0, 1)
        facing = np.clip((normal @ light.direction.astype(np.float32)) * 4, 0, 1)
        amount = cosine**power * facing * (key if number == 0 else 0.6)
        total += amount[:, None] * light.radiance.astype(np.float32)
    return total


def _skin(
    actor: Actor, values: Floats, normal: Floats, view: Floats, lights: list[Light]
) -> Floats:
    column, row = skin.texel(values[:, parts.PLACE])
    found = _look_up(actor.albedo, column, row)
    painted, cover = found[:, :3], values[:, parts.TINTED, None]
    albedo = painted + cover * (values[:, parts.TINT] - painted)
    facing = np.clip((normal * view).sum(1), 0, 1)
    fresnel = 0.032 + 0.30 * (1 - facing) ** 5
    wet = found[:, 3] * (1 - cover[:, 0])
    broad = _highlight(normal, view, lights, 16.0, values[:, parts.KEY])
    tight = _highlight(normal, view, lights, 90.0, values[:, parts.KEY])
    gloss = fresnel[:, None] * (1.2 * broad + (0.5 + 3.0 * wet)[:, None] * tight)
    return albedo * values[:, parts.LIGHT] + gloss * (1 - 0.8 * cover)


def _cloth(
    actor: Actor, values: Floats, normal: Floats, view: Floats, lights: list[Light]
) -> Floats:
    facing = (normal * view).sum(1)
    rim = (1 - np.clip(facing, 0, 1)) ** 3
    inside = np.where(facing < -0.05, 0.3, 1.0)  # down the collar
    return values[:, parts.TINT] * values[:, parts.LIGHT] * (inside * (1 + 0.35 * rim))[:, None]


def _teeth(
    actor: Actor, values: Floats, normal: Floats, view: Floats, lights: list[Light]
) -> Floats:
    place = values[:, parts.PLACE]
    albedo = actor.teeth_colour(place)
    gloss = 0.10 * _highlight(normal, view, lights, 60.0, values[:, parts.KEY])
    return albedo * values[:, parts.LIGHT] * 0.9 + gloss


def _eye(actor: Actor, values: Floats, normal: Floats, view: Floats, lights: list[Light]) -> Floats:
    albedo, clear = actor.eye_colour(values[:, parts.PLACE])
    lit = values[:, parts.LIGHT]
    mirror = 2 * (normal * view).sum(1, keepdims=True) * normal - view
    glint = np.zeros_like(albedo)
    for light in lights[:2]:
        cosine = mirror @ light.direction.astype(np.float32)
        edge = np.cos(light.spread * 0.55)
        inside = np.clip((cosine - edge) / 0.012 + 0.5, 0, 1)
        glint += inside[:, None] * light.radiance.astype(np.float32)
    strength = np.where(clear > 0.5, 0.85, 0.22)[:, None]
    return albedo * lit + strength * glint * np.clip(lit.mean(1, keepdims=True) * 2, 0.2, 1)


def _hair(stage: Stage, eye: Floats, lights: list[Light]) -> Floats:
    """[S, P, 3] radiance of strands: diffuse, and a highlight across the strand (Kajiya-Kay)."""
    tangent = np.gradient(stage.strands, axis=1)
    tangent /= np.maximum(np.sqrt((tangent * tangent).sum(-1, keepdims=True)), 1e-9)
    view = eye - stage.strands
    view /= np.sqrt((view * view).sum(-1, keepdims=True))
    radiance = stage.strand_colour * stage.strand_light * 1.15
    for number, light in enumerate(lights):
        half = view + light.direction.astype(np.float32)
        half /= np.sqrt((half * half).sum(-1, keepdims=True))
        along = (tangent * half).sum(-1)
        across = np.sqrt(np.clip(1 - along * along, 0, 1))
        visible = stage.strand_key if number == 0 else stage.strand_light.mean(-1)
        tone = 0.035 + 0.55 * stage.strand_colour
        shine = (0.55 * across**40)[..., None] * tone
        radiance = radiance + shine * visible[..., None] * light.radiance.astype(np.float32)
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
