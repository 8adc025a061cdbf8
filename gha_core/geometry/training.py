"""Fits the neutral field and its networks to the training frames of one subject."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gha_core.adam import Adam, Group
from gha_core.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gha_core.errors import StageError, locate
from gha_core.geometry import losses
from gha_core.geometry.expression_prior import CarriedExpressions, carry
from gha_core.geometry.extraction import Extractor, Surface, fit_sphere
from gha_core.geometry.frames import Box, TrainingFrame, TrainingView, bare_skin
from gha_core.geometry.losses import LossWeights
from gha_core.geometry.mesh import vertex_normals
from gha_core.geometry.networks import HeadNetworks, control_weight
from gha_core.geometry.tetrahedra import fill_box
from gha_core.mesh_rasterisation import Edges, MeshImage, mesh_edges, render_mesh
from gha_core.progress import track
from gha_core.tracked_face import TrackedFace

HISTORY_EVERY = 10  # steps
COARSEST_LATTICE = 8  # cells along the longest side
SKIN_STRIDE = 4  # every step looks at one in so many vertices of the tracked face


@dataclass(frozen=True)
class Settings:
    """How to train; ``tasks/geometry.py`` says what each means and gives its bounds."""

    resolution: int = 32
    coarse_part: float = 0.0
    width: int = 64
    steps: int = 400
    views_per_step: int = 4
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-4
    landmark_learning_rate: float = 1e-4
    t1: float = 0.15
    t2: float = 0.25
    softness: float = 2.0
    sphere_radius: float = 0.5
    sphere_steps: int = 200
    expression_prior: bool = True
    fade_start: float = 0.1
    fade_end: float = 0.3
    checkpoint_seconds: float = 30.0
    weights: LossWeights = field(default_factory=LossWeights)


@dataclass
class TrainingState:
    """Everything that training changes.

    Attributes:
        landmarks: [M, 3] neutral landmarks P0, learnable.
        step: the next one.
        history: rows (step, term, value).
    """

    networks: HeadNetworks
    landmarks: torch.nn.Parameter
    optimiser: Adam
    step: int = 0
    history: list[tuple[int, str, float]] = field(default_factory=list)

    def checkpoint(self, fingerprint: str) -> Checkpoint:
        tensors = {f"net.{name}": value for name, value in self.networks.state_dict().items()}
        tensors |= {f"adam.{k}": value for k, value in self.optimiser.tensors().items()}
        tensors["landmarks"] = self.landmarks
        return Checkpoint(self.step, tensors, self.history, fingerprint)

    def restore(self, checkpoint: Checkpoint) -> None:
        self.networks.load_state_dict(checkpoint.part("net"))
        self.optimiser.restore(checkpoint.part("adam"))
        with torch.no_grad():
            self.landmarks.copy_(checkpoint.tensors["landmarks"])
        self.step, self.history = checkpoint.step, checkpoint.history


@dataclass(frozen=True)
class Animated:
    """A surface under one expression and pose.

    Attributes:
        vertices: [V, 3] head space; colours: [V, 32] in 0..1; learned: [V, 3], what the
            deformation networks contributed to the displacement.
    """

    vertices: Tensor
    colours: Tensor
    learned: Tensor


def train(
    frames: Sequence[TrainingFrame],
    face: TrackedFace,
    box: Box,
    settings: Settings,
    seed: int,
    work: Path | None = None,
) -> TrainingState:
    """Fit the head.

    Args:
        work: folder for checkpoints; from one of the same settings the training goes on, with the
            same result.

    Raises:
        StageError: the mesh vanished, left all images, or a loss term is not finite; with the step
            and frame.
    """
    state = _start(face, settings, seed)
    lattice = fill_box(box.lower, box.upper, settings.resolution)
    # A mesh a quarter as large finds the head as well; what it cannot show is left to the fine one.
    rough = fill_box(box.lower, box.upper, max(COARSEST_LATTICE, settings.resolution // 2))
    extractors = [Extractor(each, lattice.spacing / 2, face) for each in (rough, lattice)]
    landmark_prior = carry(face.landmarks, face.vertices, face.basis, face.faces)
    skin = bare_skin(face)
    fingerprint = f"{replace(settings, checkpoint_seconds=0)} {box} {seed}"
    found = read_checkpoint(work, fingerprint) if work else None
    if found:
        state.restore(found)
    else:
        fit_sphere(state.networks, lattice, settings.sphere_radius, settings.sphere_steps, seed)
    saved = time.monotonic()
    steps = range(state.step, settings.steps)
    for step in track(steps, "geometry", total=settings.steps, start=state.step):
        if work and time.monotonic() - saved > settings.checkpoint_seconds:
            write_checkpoint(work, state.checkpoint(fingerprint))
            saved = time.monotonic()
        frame, views, where = _draw(frames, settings.views_per_step, seed, step)
        fine = step >= settings.coarse_part * settings.steps
        surface = extractors[fine].surface(state.networks, where)
        terms = _terms(state, surface, frame, views, where, face, skin, landmark_prior, settings)
        total = losses.weighted_sum(terms, settings.weights, where)
        _update(state, total, settings)
        state.step = step + 1
        if step % HISTORY_EVERY == 0 or state.step == settings.steps:
            values = {"total": total} | terms
            state.history += [(step, name, value.item()) for name, value in values.items()]
    return state


def extract(
    state: TrainingState,
    face: TrackedFace,
    box: Box,
    settings: Settings,
    resolution: int | None = None,
) -> Surface:
    """The trained neutral surface, without gradient, looked for at every node.

    Another ``resolution`` than training's shows the same surface with other triangles: the node
    offsets keep their scale.
    """
    cells = resolution or settings.resolution
    training_spacing = float((box.upper - box.lower).max()) / settings.resolution
    lattice = fill_box(box.lower, box.upper, cells)
    extractor = Extractor(lattice, training_spacing / 2, face, coarsest=cells)
    with torch.no_grad():
        return extractor.surface(state.networks, "the end of training")


def animate(
    networks: HeadNetworks,
    surface: Surface,
    landmarks: Tensor,
    expression: Tensor,
    pose: Tensor,
    face: TrackedFace,
    settings: Settings,
) -> Animated:
    """Deform and colour a surface for expression [E] and pose [6]."""
    weight = control_weight(surface.vertices, landmarks, settings.t1, settings.t2)
    learned = networks.deformation(surface.vertices, weight, expression, pose)
    moved = surface.vertices + learned
    if settings.expression_prior:
        carried = carry(
            surface.vertices,
            face.vertices,
            face.basis,
            face.faces,
            settings.fade_start,
            settings.fade_end,
            surface.candidates,
        )
        moved = moved + carried.displacement(expression)
    colours = networks.colour(surface.features, weight, expression, pose)
    return Animated(moved, colours, learned)


def _start(face: TrackedFace, settings: Settings, seed: int) -> TrainingState:
    torch.manual_seed(seed)
    networks = HeadNetworks(len(face.basis), settings.width)
    landmarks = torch.nn.Parameter(face.landmarks.clone())
    optimiser = Adam(
        [
            Group(list(networks.parameters()), settings.learning_rate),
            Group([landmarks], settings.landmark_learning_rate),
        ]
    )
    return TrainingState(networks, landmarks, optimiser)


def _draw(
    frames: Sequence[TrainingFrame], count: int, seed: int, step: int
) -> tuple[TrainingFrame, list[TrainingView], str]:
    """The batch of a step. It depends on nothing but seed and step, so a run can be resumed."""
    epoch, place = divmod(step, len(frames))
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(frames))
    frame = frames[order[place]]
    draw = np.random.default_rng([seed, 1, step])
    chosen = draw.choice(len(frame.views), min(count, len(frame.views)), replace=False)
    where = f"step {step}, {locate(frame.sequence, frame.timestep)}"
    return frame, [frame.views[index] for index in chosen], where


def _terms(
    state: TrainingState,
    surface: Surface,
    frame: TrainingFrame,
    views: Sequence[TrainingView],
    where: str,
    face: TrackedFace,
    skin: Tensor,
    landmark_prior: CarriedExpressions,
    settings: Settings,
) -> dict[str, Tensor]:
    networks, points = state.networks, state.landmarks
    expression, pose = frame.expression, frame.pose_vector
    animated = animate(networks, surface, points, expression, pose, face, settings)
    world = frame.to_world(animated.vertices)
    edges = mesh_edges(surface.faces)
    pictures = [
        _render(world, surface.faces, animated.colours[:, :3], view, edges, settings.softness)
        for view in views
    ]
    if not any(picture.mask.any() for picture in pictures):
        cameras = ", ".join(view.camera.name for view in views)
        raise StageError(
            f"The mesh lies outside all images at {where} (cameras {cameras}). The tracked pose "
            "does not put the head where these cameras look; see the preview of the tracking stage."
        )
    skin = skin[state.step % SKIN_STRIDE :: SKIN_STRIDE]
    own_weight = points.new_ones(len(points))
    moved = points + networks.deformation(points, own_weight, expression, pose)
    if settings.expression_prior:
        moved = moved + landmark_prior.displacement(expression)

    images = torch.stack([torch.from_numpy(view.image) for view in views]).float() / 255
    mattes = torch.stack([torch.from_numpy(view.matte) for view in views]).float() / 255
    usable = torch.stack([torch.from_numpy(view.usable) for view in views]).float()
    covered = torch.stack([picture.mask for picture in pictures])
    rendered = torch.stack([picture.attributes for picture in pictures])
    soft = torch.stack([picture.silhouette for picture in pictures])
    return {
        "rgb": losses.rgb(rendered, images, usable * mattes * covered),
        "silhouette": losses.silhouette(soft, mattes, usable),
        "landmarks": losses.landmarks(moved, frame.landmarks),
        "offset": losses.offset(animated.learned, surface.offsets),
        "surface": losses.surface(
            networks.sdf(points), networks.sdf(skin[state.step % SKIN_STRIDE :: SKIN_STRIDE])
        ),
        "laplacian": losses.laplacian(
            surface.vertices,
            edges.vertices,
            vertex_normals(surface.vertices.detach(), surface.faces),
            surface.spacing,
        ),
    }


def _render(
    world: Tensor,
    faces: Tensor,
    colours: Tensor,
    view: TrainingView,
    edges: Edges,
    softness: float,
) -> MeshImage:
    camera = view.camera
    return render_mesh(
        world, faces, colours, camera.K, camera.w2c, camera.width, camera.height, softness, edges
    )


def _update(state: TrainingState, total: Tensor, settings: Settings) -> None:
    """One Adam step; the learning rates fall to their final fraction along half a cosine."""
    last = settings.final_learning_rate / settings.learning_rate
    fall = 0.5 * (1 + math.cos(math.pi * state.step / settings.steps))
    factor = last + (1 - last) * fall
    rates = (settings.learning_rate, settings.landmark_learning_rate)
    for group, rate in zip(state.optimiser.groups, rates, strict=True):
        group.rate = rate * factor
    state.optimiser.zero_grad()
    total.backward()
    state.optimiser.step()
