"""The demo person as geometry: what the face model says, plus smooth surfaces, hair and a shirt.

An :class:`Actor` holds everything that does not change between frames; :meth:`Actor.stage` poses
and lights it for one timestep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.faces import FaceModel
from gha_core.pose import HeadPose
from gha_core.synthetic import features, hair, light, shapes, skin
from gha_core.synthetic.person import Person

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

# what a face is made of, which decides its shader
SKIN, EYE, TEETH, CLOTH = 0, 1, 2, 3
# columns of the attributes that shaders interpolate
PLACE, NORMAL, LIGHT, TINT, TINTED, KEY = (
    slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12), 12, 13,
)  # fmt: skip
SCATTER = np.array([0.32, 0.14, 0.09], np.float32)  # of light in skin, per channel


@dataclass(frozen=True)
class Stage:
    """One timestep, posed and lit, in world metres; what every camera shares.

    Attributes:
        model_vertices: [V, 3] the face model's own vertices, float64.
        vertices, faces, kinds: smooth surfaces [n, 3], [m, 3] and the shader of each face [m].
        face_corner, face_normal: [3, m] a corner of each face and its normal (of any length).
        attributes: [n, A] of the vertices, in the columns named above.
        strands, strand_out, strand_tangent, strand_colour, strand_light [3, S, P], strand_width,
            strand_key [S, P]: the hair, its directions away from the head and along itself, its
            light and how much of the key light it sees.
        strand_faces: of its ribbons, see :func:`ribbon_faces`.
    """

    model_vertices: Floats
    vertices: Floats
    faces: Ints
    kinds: Ints
    face_corner: Floats
    face_normal: Floats
    attributes: Floats
    strands: Floats
    strand_out: Floats
    strand_tangent: Floats
    strand_width: Floats
    strand_colour: Floats
    strand_light: Floats
    strand_key: Floats
    strand_faces: Ints


class Actor:
    def __init__(self, model: FaceModel, person: Person, lamps: light.Lamps) -> None:
        self.model, self.person, self.lamps = model, person, lamps
        self.identity = torch.from_numpy(person.identity)
        self.mean = model.mean.numpy().astype(float)
        self.regions = {name: mask.numpy() for name, mask in model.regions.items()}
        faces = model.faces.numpy()
        self.neutral = person.neutral(model)
        self.anatomy = skin.Anatomy.of(model)
        self.albedo = skin.paint(model, person)
        smooth = shapes.subdivide(faces, len(self.mean))
        self.smooth = smooth.matrix.astype(np.float32)
        rng = np.random.default_rng([person.seed, 4])
        self.shirt = shapes.shirt(self.neutral[self.regions["neck"]], rng)
        count = self.smooth.shape[0]
        hidden = (smooth.matrix @ self.neutral)[:, 1] < self.shirt.collar - 0.11
        hidden &= (smooth.matrix @ self.regions["neck"].astype(float)) > 0.99
        shown = ~hidden[smooth.faces].all(1)  # the rest of the neck is under the shirt
        self.faces = np.concatenate([smooth.faces[shown], self.shirt.faces + count])
        self.kinds = np.concatenate(
            [np.repeat(self._kinds(faces), 4)[shown], np.full(len(self.shirt.faces), CLOTH)]
        )
        total = count + len(self.shirt.vertices)
        self.incidence = shapes.face_incidence(self.faces, total)
        self.average = shapes.neighbour_average(self.faces, total)
        self.place = np.concatenate([self.smooth @ self.mean, self.shirt.vertices]).astype(
            np.float32
        )
        self.tint, self.tinted = self._tints(total, count)
        # Light scattered inside of an open mouth, which shadow maps do not know of.
        glow = 0.09 * self.regions["mouth_interior"] + 0.34 * self.regions["teeth"]
        glow = glow + 0.20 * self.regions["tongue"]
        glow *= 0.15 + 0.85 * np.clip((self.mean[:, 2] - 0.33) / 0.09, 0, 1) ** 1.5  # dark inside
        inside = self.smooth @ (glow > 0).astype(np.float32) > 0.3
        glow = self.smooth @ glow.astype(np.float32)
        warm = np.array([1.0, 0.86, 0.82], np.float32)
        self.glow = np.concatenate([glow, np.zeros(total - count, np.float32)])[:, None] * warm
        self.bias = np.full(total, 0.006, np.float32)
        self.bias[:count][inside] = 0.002
        biting = faces[self.regions["teeth"][faces].all(1)]
        used, local = np.unique(biting, return_inverse=True)
        self.arch = features.Arch(self.mean[used], local.reshape(-1, 3))
        carries = ~np.any(
            [self.regions[n] for n in ("ears", "eyes", "mouth_interior", "tongue", "teeth",
                                       "eye_sockets", "neck")], axis=0)  # fmt: skip
        carries &= self.regions["scalp"] | self.regions["face"]
        solid = carries | self.regions["ears"] | (self.regions["neck"] & (self.mean[:, 1] > -0.55))
        self.hair = hair.grow(person, self.neutral, self.mean, faces, carries, solid)
        upper, lower = self._lash_lines()
        self.lashes = hair.Lashes.of(person, self.mean, faces, upper, lower)
        self.strand_faces = ribbon_faces(len(self.hair.points) + len(self.lashes.edges))
        neck = self.neutral[self.regions["neck"]]
        self.neck_low, self.neck_high = neck[:, 1].min() + 0.10, self.anatomy.chin[1] + 0.06
        self.follow = np.clip(
            (self.neutral[:, 1] - self.neck_low) / (self.neck_high - self.neck_low), 0, 1
        )
        self.follow[~self.regions["neck"]] = np.maximum(self.follow[~self.regions["neck"]], 0.0)
        self.follow = self.follow**2 * (3 - 2 * self.follow)
        self.wrap = np.where(
            (np.bincount(self.faces.ravel(), np.repeat(self.kinds == SKIN, 3), total) > 0)[:, None],
            SCATTER, np.float32(0.05),
        ).astype(np.float32)  # fmt: skip

    def eye_colour(self, place: Floats) -> tuple[Floats, Floats]:
        return features.eye_colour(place, self.anatomy, self.person)

    def teeth_colour(self, place: Floats) -> Floats:
        return features.teeth_colour(place, self.arch)

    def _kinds(self, faces: Ints) -> Ints:
        kinds = np.full(len(faces), SKIN)
        kinds[self.regions["eyes"][faces].all(1)] = EYE
        kinds[self.regions["teeth"][faces].all(1)] = TEETH
        return kinds

    def _tints(self, total: int, count: int) -> tuple[Floats, Floats]:
        """Colours [n, 3] that belong to vertices and how much [n] they cover the painted skin."""
        person, regions = self.person, self.regions
        colour = np.tile(person.skin, (len(self.mean), 1))
        cover = np.zeros(len(self.mean))

        def put(mask: NDArray[np.bool_], value: Floats, amount: float) -> None:
            colour[mask], cover[mask] = value, amount

        put(regions["ears"], person.skin * [1.0, 0.80, 0.78], 0.5)
        put(regions["eye_sockets"], np.array([0.30, 0.13, 0.11]) * (0.6 + person.skin), 0.9)
        put(regions["mouth_interior"], np.array([0.22, 0.045, 0.04]), 1.0)
        upper, lower = self._lash_lines()
        lash = 0.25 * person.hair + np.array([0.012, 0.009, 0.008])
        put(upper, lash, 0.85 if person.sex == "woman" else 0.6)
        put(lower, 0.4 * lash + 0.5 * person.skin * [1.0, 0.72, 0.70], 0.5)
        put(regions["tongue"], np.array([0.42, 0.13, 0.12]), 1.0)
        colour = np.concatenate([self.smooth @ colour, np.zeros((total - count, 3))])
        cover = np.concatenate([self.smooth @ cover, np.ones(total - count)])
        colour[count:] = self.shirt.shade[:, None] * person.shirt
        return colour.astype(np.float32), cover.astype(np.float32)

    def _lash_lines(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """[V] rims of the upper and of the lower lids: skin just off the eyeball's surface."""
        upper, lower = np.zeros((2, len(self.mean)), bool)
        for centre in self.anatomy.eyes:
            ball = self.mean[self.regions["eyes"]]
            ball = ball[ball[:, 0] * centre[0] > 0]
            radius = np.linalg.norm(ball - centre, axis=1).mean()
            distance = np.linalg.norm(self.mean - centre, axis=1) / radius
            rim = self.regions["face"] & (distance > 1.03) & (distance < 1.145)
            x, y = np.abs(self.mean[:, 0]), self.mean[:, 1]
            ends = [np.flatnonzero(rim)[x[rim].argmin()], np.flatnonzero(rim)[x[rim].argmax()]]
            above = y > np.interp(x, x[ends], y[ends])
            upper |= rim & above
            lower |= rim & ~above
        return upper, lower

    def stage(self, expression: Floats, pose: HeadPose, rest: HeadPose) -> Stage:
        """The person at one timestep.

        Args:
            expression: [E].
            pose: of the head. rest: the pose of head and torso when nothing moves; the neck bends
                between the two.
        """
        coefficients = torch.from_numpy(np.asarray(expression, np.float32))
        shape = self.model.vertices(self.identity, coefficients).numpy().astype(float)
        follow = self.follow[:, None]
        world = follow * pose.to_world(shape) + (1 - follow) * rest.to_world(shape)
        surface = np.concatenate(
            [self.smooth @ world.astype(np.float32), rest.to_world(self.shirt.vertices)]
        ).astype(np.float32)
        across = shapes.face_normals(surface, self.faces)
        normals = shapes.vertex_normals(across, self.incidence).astype(np.float32)
        strands = pose.to_world(self.hair.points).astype(np.float32)
        tangent = _tangent(strands)
        fringe = self.lashes.posed(world, self.regions["eyes"], pose.scale)
        out = (self.hair.normals @ pose.matrix.T.astype(np.float32)).astype(np.float32)
        width = self.hair.width * np.float32(pose.scale)

        # every sixth strand, widened, stands for the hair in the shadow maps
        few, along, facing = (_channels_first(values[::6]) for values in (strands, tangent, out))
        thick = ribbons(few, along, facing, width[::6] * 5)
        thick_faces = ribbon_faces(few.shape[1]).reshape(-1, 3)
        blockers = np.concatenate([world, rest.to_world(self.shirt.vertices), thick]).astype(float)
        start = len(self.mean)
        blocker_faces = np.concatenate(
            [
                self.model.faces.numpy(),
                self.shirt.faces + start,
                thick_faces + start + len(self.shirt.vertices),
            ]
        )
        knots = [0, hair.POINTS // 2, hair.POINTS - 1]
        sampled = strands[:, knots].reshape(-1, 3)
        points = np.concatenate([surface, sampled])
        ours = len(surface)
        bias = np.concatenate([self.bias, np.full(len(sampled), 0.018, np.float32)])
        wrap = np.concatenate([self.wrap, np.full((len(sampled), 3), 0.35, np.float32)])
        irradiance, key = light.illuminate(
            self.lamps, points, np.concatenate([normals, out[:, knots].reshape(-1, 3)]), wrap, bias,
            blockers, blocker_faces, rest.to_world(np.array([0.0, -0.05, 0.0])),
        )  # fmt: skip
        lit, key_lit = irradiance[:ours], key[:ours, None]
        lit = lit + self.glow
        for _ in range(2):
            lit, key_lit = self.average @ lit, self.average @ key_lit
        attributes = np.concatenate(
            [self.place, normals, lit, self.tint, self.tinted[:, None], key_lit], 1
        ).astype(np.float32)
        strand_light = _spread(irradiance[ours:].reshape(-1, len(knots), 3))
        deep = (0.35 + 0.65 * self.hair.depth)[..., None]
        dim = np.full((len(fringe), hair.POINTS, 3), 0.35, np.float32)
        strand_key = _spread(key[ours:].reshape(-1, len(knots), 1))[..., 0] * deep[..., 0]
        return Stage(
            model_vertices=world,
            vertices=surface,
            faces=self.faces,
            kinds=self.kinds,
            face_corner=_channels_first(surface.take(self.faces[:, 0], 0)),
            face_normal=_channels_first(across),
            attributes=attributes,
            strands=_channels_first(strands, fringe),
            strand_tangent=_channels_first(tangent, _tangent(fringe)),
            strand_out=_channels_first(out, np.zeros_like(fringe)),
            strand_width=np.concatenate([width, self.lashes.width * np.float32(pose.scale)]),
            strand_colour=_channels_first(self.hair.colour, self.lashes.colour),
            strand_light=_channels_first(strand_light * deep, dim),
            strand_key=np.concatenate([strand_key, 0 * dim[..., 0]]).astype(np.float32),
            strand_faces=self.strand_faces,
        )


def ribbons(points: Floats, tangent: Floats, facing: Floats, width: Floats) -> Floats:
    """[S * P * 2, 3] vertices of flat bands along strands [3, S, P] of ``width`` [S, P], turned to
    ``facing`` [3, S, P]."""
    (a, b, c), (u, v, w) = tangent, facing
    side = np.stack([b * w - c * v, c * u - a * w, a * v - b * u])
    side *= 0.5 * width / np.maximum(np.sqrt((side * side).sum(0)), 1e-9)
    return np.stack([points - side, points + side], -1).reshape(3, -1).T


def ribbon_faces(count: int) -> Ints:
    """[count * (POINTS - 1), 2, 3]: two triangles from each point of a strand to the next."""
    start = (np.arange(count)[:, None] * hair.POINTS + np.arange(hair.POINTS - 1)).ravel() * 2
    return start[:, None, None] + np.array([[0, 1, 2], [1, 3, 2]])


def _channels_first(*strands: Floats) -> Floats:
    """[3, ...] float32 of arrays [..., 3], joined along their first axis."""
    joined = np.concatenate(strands).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(joined, -1, 0))


def _tangent(strands: Floats) -> Floats:
    """[S, P, 3] unit directions along strands [S, P, 3]."""
    along = np.gradient(strands, axis=1)
    return np.asarray(along / np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-9))


def _spread(values: Floats) -> Floats:
    """[S, 3, C] at root, middle and tip to [S, POINTS, C] linearly."""
    t = np.linspace(0, 2, hair.POINTS)
    weights = np.clip(1 - np.abs(t[:, None] - np.arange(3)), 0, 1).astype(np.float32)
    return np.einsum("pk,skc->spc", weights, values)
