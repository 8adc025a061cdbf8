"""Hair as strands: roots on the scalp, grown along a style's flow, kept outside of the head.

Everything is in head space of the neutral person; the hair moves rigidly with the skull.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.synthetic.person import Person
from gha_core.synthetic.skin import AXIS_Z, hairline

Floats = NDArray[np.floating]
POINTS = 9  # per strand
SUBSTEPS = 3  # of growth between two points


@dataclass(frozen=True)
class Style:
    """How hair grows; lengths in head units (about 0.23 m).

    Attributes:
        length: of the hair on top, ``side``: of the hair below the temples.
        lift: how much strands stand off at the root. volume: thickness of the layer.
        gravity: how quickly they turn down. comb: 'forward', 'back', 'side', 'down' or 'bun'.
        part: x of the parting (side and down). wave: amplitude of waves. width: of a strand.
    """

    length: float
    side: float
    lift: float
    volume: float
    gravity: float
    comb: str
    part: float = 0.0
    wave: float = 0.0
    width: float = 0.0095
    count: int = 3800


STYLES = {
    "crop": Style(0.10, 0.045, 0.7, 0.050, 0.0, "forward", width=0.0080, count=4400),
    "side": Style(0.34, 0.07, 0.45, 0.075, 0.25, "side", part=0.12, wave=0.006),
    "back": Style(0.42, 0.09, 0.40, 0.065, 0.10, "back", wave=0.005),
    "bob": Style(
        0.84, 0.66, 0.25, 0.075, 1.3, "down", part=0.06, wave=0.008, width=0.012, count=3200
    ),
    "long": Style(1.15, 1.00, 0.25, 0.070, 1.4, "down", wave=0.018, width=0.012, count=3200),
    "bun": Style(0.60, 0.60, 0.15, 0.035, 0.0, "bun", wave=0.002),
}
BUN = np.array([0.0, 0.43, -0.42])


@dataclass(frozen=True)
class Hair:
    """Strands of POINTS points each.

    Attributes:
        points: [S, POINTS, 3] head space.
        normals: [S, POINTS, 3] direction away from the head, for soft shading.
        colour: [S, POINTS, 3] linear albedo.
        width: [S, POINTS] head space.
        depth: [S, POINTS] 0 at the scalp .. 1 at the outside of the hair.
    """

    points: Floats
    normals: Floats
    colour: Floats
    width: Floats
    depth: Floats


class Skull:
    """The head as a radius per direction from its middle: a cheap test of what is inside."""

    CENTRE = np.array([0.0, 0.12, -0.02])
    ROWS, COLUMNS = 96, 192

    def __init__(self, vertices: Floats) -> None:
        away = vertices - self.CENTRE
        radius = np.linalg.norm(away, axis=1)
        row, column = self._cell(away / radius[:, None])
        grid = np.zeros((self.ROWS, self.COLUMNS), np.float32)
        np.maximum.at(grid, (row.astype(int), column.astype(int)), radius)
        known = (grid > 0).astype(np.float32)
        wrapped = [np.concatenate([layer] * 3, 1) for layer in (grid, known)]
        soft, weight = (cv2.GaussianBlur(layer, (0, 0), 2.6) for layer in wrapped)
        filled = soft / np.maximum(weight, 1e-6)
        self.grid = filled[:, self.COLUMNS : 2 * self.COLUMNS]

    def _cell(self, direction: Floats) -> tuple[Floats, Floats]:
        polar = np.arccos(np.clip(direction[..., 1], -1, 1)) / np.pi
        azimuth = np.arctan2(direction[..., 0], direction[..., 2]) / (2 * np.pi) + 0.5
        return (
            np.clip(polar * self.ROWS, 0, self.ROWS - 1),
            np.clip(azimuth * self.COLUMNS, 0, self.COLUMNS - 1),
        )

    def radius(self, direction: Floats) -> Floats:
        row, column = self._cell(direction)
        found = cv2.remap(
            self.grid, (column - 0.5).astype(np.float32), (row - 0.5).astype(np.float32),
            cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return np.asarray(found, np.float32).reshape(direction.shape[:-1])

    def push_out(self, points: Floats, layer: Floats) -> tuple[Floats, Floats]:
        """Points no nearer than ``layer`` to the skull, and their directions from its middle."""
        away = points - self.CENTRE
        distance = np.linalg.norm(away, axis=-1, keepdims=True)
        direction = away / np.maximum(distance, 1e-9)
        least = self.radius(direction)[..., None] + layer
        # far below the ears the "skull" is neck and shoulders: hair may hang freely there
        return self.CENTRE + direction * np.maximum(distance, least), direction


def grow(
    person: Person,
    vertices: Floats,
    mean: Floats,
    faces: NDArray[np.int64],
    skin: NDArray[np.bool_],
    solid: NDArray[np.bool_],
) -> Hair:
    """The hair of ``person``.

    Args:
        vertices, mean: [V, 3] neutral head of the person and of the mean head (which says where
            hair grows), head space.
        skin: [V] vertices of the skin that may carry hair (no ears, eyes, mouth).
        solid: [V] vertices that hair does not pass through.
    """
    rng = np.random.default_rng([person.seed, 3])
    style = STYLES[person.hair_style]
    roots, canonical, normals = _roots(vertices, mean, faces, skin, style, rng)
    skull = Skull(vertices[solid])
    count = len(roots)
    height = canonical[:, 1]
    top = np.clip((height - 0.18) / 0.22, 0, 1)
    length = (style.side + (style.length - style.side) * top) * rng.uniform(0.82, 1.08, count)
    if person.hair_style in ("crop", "side", "back"):  # short at the nape and the sideburns
        length *= np.interp(height, [-0.3, 0.0, 0.2], [0.35, 0.6, 1.0])
    depth = rng.beta(1.6, 1.2, count)
    layer = style.volume * depth * np.clip(length / (0.6 * style.volume), 0.25, 1)
    path = np.zeros((count, (POINTS - 1) * SUBSTEPS + 1, 3))
    path[:, 0] = roots
    heading = _combed(style, roots, normals) + style.lift * normals
    heading = _unit(heading + rng.normal(0, 0.10, (count, 3)))
    step = (length / (path.shape[1] - 1))[:, None]
    down = style.gravity * np.array([0, -1.0, 0])
    for k in range(1, path.shape[1]):
        grown = k / (path.shape[1] - 1)
        here, out = skull.push_out(path[:, k - 1], np.zeros((count, 1)))
        heading = _unit(
            0.7 * heading + 0.35 * (_combed(style, here, out) + min(1, 2 * grown) * down)
        )
        allowed = (layer * min(1.0, 0.3 + 2.5 * grown))[:, None]
        path[:, k], _ = skull.push_out(path[:, k - 1] + step * heading, allowed)
        heading = _unit(path[:, k] - path[:, k - 1])
    points = path[:, ::SUBSTEPS].copy()
    if style.comb == "down":  # no strands over the face
        azimuth = np.abs(np.arctan2(points[..., 0], points[..., 2] - AXIS_Z))
        clear = ~((azimuth < np.radians(66)) & (points[..., 1] < 0.26)).any(1)
        points, roots, depth, length = points[clear], roots[clear], depth[clear], length[clear]
        count = len(points)
    t = np.linspace(0, 1, POINTS)[None, :]
    if style.wave:
        # neighbouring strands swing together: locks, not frizz
        phase = 3.0 * np.sin(roots @ rng.normal(0, 9, 3)) + rng.normal(0, 0.5, count)
        waves = 1.6 + 0.3 * np.sin(roots @ rng.normal(0, 9, 3))
        side = np.cross(np.gradient(points, axis=1), [0, 0.0, 1.0])
        side /= np.maximum(np.linalg.norm(side, axis=2, keepdims=True), 1e-9)
        swing = np.sin(2 * np.pi * waves[:, None] * t + phase[:, None])
        points += (style.wave * t * swing)[..., None] * side
    if style.comb == "bun":
        bun = _bun(rng, 900)
        points = np.concatenate([points, bun])
        depth = np.concatenate([depth, rng.uniform(0.5, 1, len(bun))])
        count = len(points)
    _, outward = skull.push_out(points, np.zeros((*points.shape[:2], 1)))
    if style.comb == "bun":
        outward[-900:] = _unit(points[-900:] - BUN)
    return Hair(
        points=points.astype(np.float32),
        normals=outward.astype(np.float32),
        colour=_colour(person, points, t, rng).astype(np.float32),
        width=(style.width * rng.uniform(0.75, 1.25, (count, 1)) * (1.0 - 0.55 * t**2)).astype(
            np.float32
        ),
        depth=(depth[:, None] * np.clip(0.25 + 1.6 * t, 0, 1)).astype(np.float32),
    )


def _unit(v: Floats) -> Floats:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def _roots(
    vertices: Floats, mean: Floats, faces: NDArray[np.int64], skin: NDArray[np.bool_], style: Style,
    rng: np.random.Generator,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    usable = faces[skin[faces].all(1)]
    corner = vertices[usable]
    across = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = np.linalg.norm(across, axis=1)
    azimuth = np.degrees(np.arctan2(mean[:, 0], mean[:, 2] - AXIS_Z))
    grows = mean[:, 1] > hairline(azimuth) - 0.03
    area = area * grows[usable].any(1)
    drawn = rng.choice(len(usable), int(style.count * 1.25), p=area / area.sum())
    weights = rng.dirichlet([1.0] * 3, len(drawn))
    canonical = (mean[usable[drawn]] * weights[..., None]).sum(1)
    side = np.degrees(np.arctan2(canonical[:, 0], canonical[:, 2] - AXIS_Z))
    line = hairline(side)
    if style.comb == "down":  # combed out of the face: nothing hangs from the temples
        line = np.maximum(
            line, np.interp(np.abs(side), [0, 30, 62, 75, 90], [0.39, 0.37, 0.24, 0.16, 0])
        )
    keep = (canonical[:, 1] > 0.02) | (np.abs(side) > 112)  # no tufts before the ear lobes
    keep &= canonical[:, 1] > line + rng.normal(0, 0.012, len(drawn))
    roots = (corner[drawn] * weights[..., None]).sum(1)
    return roots[keep], canonical[keep], _unit(across[drawn])[keep]


def _combed(style: Style, points: Floats, normals: Floats) -> Floats:
    """[n, 3] unit direction in which the hair lies at ``points``, tangential to the head."""
    x, y, z = points.T
    if style.comb == "forward":
        swirl = np.stack(
            [-0.5 * np.sign(x) * np.abs(x) ** 0.5, -0.9 * np.ones_like(x), 0.9 + 0 * x], 1
        )
        crown = np.clip((y - 0.35) / 0.2, 0, 1)[:, None]
        flow = (1 - crown) * swirl + crown * np.stack([0.25 + 0 * x, 0 * x, 1.0 + 0 * x], 1)
    elif style.comb == "back":
        flow = np.stack([0.5 * x, -0.3 - 0.9 * np.clip(0.2 - y, 0, 1), -1.0 + 0 * x], 1)
    elif style.comb == "side":
        sides = np.where(x > style.part, 1.0, -1.0)
        on_top = np.clip((y - 0.22) / 0.18, 0, 1)
        flow = np.stack([sides * on_top, -1.0 + 0.8 * on_top, -0.45 - 0.15 * on_top + 0 * x], 1)
    elif style.comb == "down":
        sides = np.tanh((x - style.part) / 0.03)
        on_top, ahead = np.clip((y - 0.30) / 0.2, 0, 1), np.clip((z - 0.08) / 0.2, 0, 1)
        back = -0.3 - 0.4 * on_top - 0.9 * ahead
        flow = np.stack([sides * (0.25 + 1.2 * on_top), -1.0 + 0.6 * on_top, back], 1)
    else:
        flow = _unit(BUN - points) * [0.8, 1.0, 1.2]
    flow = flow - (flow * normals).sum(1, keepdims=True) * normals
    return _unit(flow)


def _bun(rng: np.random.Generator, count: int) -> Floats:
    """[count, POINTS, 3] strands wound around a ball."""
    axis = _unit(np.array([0.0, 0.6, -1.0]))
    radius = 0.125 * rng.uniform(0.85, 1.05, count)
    tilt = rng.normal(0, 0.5, (count, 3))
    u = _unit(np.cross(axis + tilt, rng.normal(size=(count, 3))))
    v = _unit(np.cross(axis + 0.4 * tilt, u))
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.linspace(0, 1.8, POINTS)[None]
    ring = np.cos(angle)[..., None] * u[:, None] + np.sin(angle)[..., None] * v[:, None]
    return BUN + radius[:, None, None] * ring


def _colour(person: Person, points: Floats, t: Floats, rng: np.random.Generator) -> Floats:
    """Locks share a shade (waves over the roots), strands vary a little, tips are lighter."""
    count = len(points)
    roots = points[:, 0]
    shade = np.zeros(count)
    for _ in range(14):
        wave = rng.normal(0, 1, 3) * 22
        shade += np.sin(roots @ wave + rng.uniform(0, 2 * np.pi))
    shade = 1 + 0.075 * shade / 2.6 * 1.6 + rng.normal(0, 0.07, count)
    warm = 1 + np.array([0.05, 0.0, -0.05]) * rng.normal(0, 1, (count, 1))
    colour = np.clip(shade, 0.55, 1.6)[:, None] * warm * person.hair
    return colour[:, None, :] * (0.80 + 0.35 * t)[..., None]


@dataclass(frozen=True)
class Lashes:
    """Eyelashes: strands that ride on the rims of the lids.

    Attributes:
        edges: [S, 2] vertices between which a lash sits, ``along`` [S, 1] where.
        side: [S] 0 for the left eye, 1 for the right. turn: [S, 2] how far a lash leans outwards
            and up. length: [S, 1] head units. colour [S, POINTS, 3], width [S, POINTS]: as in Hair.
    """

    edges: NDArray[np.int64]
    along: Floats
    side: NDArray[np.int64]
    turn: Floats
    length: Floats
    colour: Floats
    width: Floats

    @staticmethod
    def of(
        person: Person, mean: Floats, faces: NDArray[np.int64], upper: NDArray[np.bool_],
        lower: NDArray[np.bool_],
    ) -> Lashes:  # fmt: skip
        """Lashes on the edges between vertices [V] of the ``upper`` and of the ``lower`` rims."""
        rng = np.random.default_rng([person.seed, 6])
        pairs = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)
        woman = person.sex == "woman"
        chosen, lengths, lifts = [], [], []
        for rim, count, length, lift in (
            (upper, 110, 0.026 if woman else 0.016, 0.5),
            (lower, 30, 0.007, -0.4),
        ):
            edges = pairs[rim[pairs].all(1)]
            extent = np.linalg.norm(mean[edges[:, 0]] - mean[edges[:, 1]], axis=1)
            chosen.append(edges[rng.choice(len(edges), count, p=extent / extent.sum())])
            lengths.append(length * rng.uniform(0.7, 1.1, count))
            lifts.append(lift + rng.normal(0, 0.12, count))
        edges = np.concatenate(chosen)
        count = len(edges)
        t = np.linspace(0, 1, POINTS)
        return Lashes(
            edges=edges,
            along=rng.random((count, 1)),
            side=(mean[edges[:, 0], 0] < 0).astype(np.int64),
            turn=np.stack([rng.normal(0.25, 0.12, count), np.concatenate(lifts)], 1),
            length=np.concatenate(lengths)[:, None],
            colour=np.tile((0.25 * person.hair + 0.006).astype(np.float32), (count, POINTS, 1)),
            width=np.tile((0.0026 * (1 - 0.8 * t)).astype(np.float32), (count, 1)),
        )

    def posed(self, world: Floats, eyes: NDArray[np.bool_], scale: float) -> Floats:
        """[S, POINTS, 3] strands in the world, on the posed face model ``world`` [V, 3].

        Args:
            eyes: [V] vertices of the balls; the first half is the left one's.
        """
        balls = world[eyes]
        halves = [balls[: len(balls) // 2], balls[len(balls) // 2 :]]
        centres = np.stack([half.mean(0) for half in halves])
        root = world[self.edges[:, 0]] * (1 - self.along) + world[self.edges[:, 1]] * self.along
        ahead = _unit(root - centres[self.side])
        # across the face, away from the nose, and up: the frame of the two eyes
        across = _unit(centres[0] - centres[1])
        outwards = np.where(self.side[:, None] == 0, across, -across)
        up = _unit(np.cross(ahead, across))
        up = np.where((up[:, 1:2] < 0), -up, up)
        t = np.linspace(0, 1, POINTS)[None, :, None]
        lean = self.turn[:, None, :1] * outwards[:, None] + self.turn[:, None, 1:] * t * up[:, None]
        strand = t * (ahead[:, None] + lean)
        return (root[:, None] + scale * self.length[:, None] * strand).astype(np.float32)
