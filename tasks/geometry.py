"""Geometry: the subject's neutral head as a mesh, and networks that deform and colour it.

Reads ingest, matting and tracking. The mesh is the zero level of a signed distance network,
extracted by marching tetrahedra in every step and fitted to the photos and mattes of the training
views (Xu et al., Gaussian Head Avatar, stage 1). The avatar stage starts from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from gha_core.artifacts import schemas
from gha_core.artifacts.contact_sheet import contact_sheet
from gha_core.artifacts.images import Image, encode_jpeg
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import write_table
from gha_core.dataset import Dataset, View
from gha_core.geometry.extraction import Surface
from gha_core.geometry.frames import (
    TrainingFrame,
    load_frames,
    seen_from_outside,
    subject_box,
    within_box,
)
from gha_core.geometry.losses import LossWeights
from gha_core.geometry.mesh import (
    coloured_picture,
    largest_component,
    shaded_picture,
    write_ply,
)
from gha_core.geometry.training import (
    Settings,
    TrainingState,
    animate,
    extract,
    train,
)
from gha_core.tracked_face import TrackedFace
from tasks.stage import Inputs, StageParams

_PREVIEW_VIEWS = 5


class Weights(StageParams):
    """Factors of the loss terms."""

    rgb: float = Field(
        0.1, ge=0, description="colour, mean absolute difference; paper: 1, its published code: 0.1"
    )
    silhouette: float = Field(0.1, ge=0, description="1 - soft intersection over union with mattes")
    landmarks: float = Field(1.0, ge=0, description="deformed neutral landmarks vs tracked ones")
    offset: float = Field(
        1.0, ge=0, description="squared learned displacements and grid offsets; paper: 0.01"
    )
    surface: float = Field(
        0.3, ge=0, description="|signed distance| on landmarks and tracked face; paper: 0.1"
    )
    laplacian: float = Field(2.0, ge=0, description="bumps, in units of the grid's spacing")


class Params(StageParams):
    """How the neutral head is found."""

    resolution: int = Field(
        32, ge=8, le=256, description="cells along the longest side of the grid's box"
    )
    output_resolution: int = Field(
        40, ge=8, le=512, description="the same, of the finer grid that the final mesh comes from"
    )
    coarse_part: float = Field(
        0.0, ge=0, le=1, description="part of the steps, the first, on a grid half as fine"
    )
    width: int = Field(64, ge=8, le=512, description="hidden width of the networks; paper: 256")
    steps: int = Field(400, ge=1, description="training steps; paper: 10000")
    image_size: int = Field(128, ge=16, le=1024, description="longest side of training images, px")
    frames: int = Field(64, ge=1, description="at most so many timesteps, evenly spread, are used")
    views_per_step: int = Field(4, ge=1, description="views of the step's timestep; paper: 4")
    learning_rate: float = Field(2e-3, gt=0, description="Adam's, of all networks; paper: 0.001")
    final_learning_rate: float = Field(1e-4, gt=0, description="reached along half a cosine")
    landmark_learning_rate: float = Field(1e-4, ge=0, description="of the neutral landmarks")
    t1: float = Field(
        0.15, ge=0, description="up to here from a landmark the expression rules; head lengths"
    )
    t2: float = Field(0.25, gt=0, description="from here on the pose rules alone; head lengths")
    softness: float = Field(2.0, gt=0, description="half width of the soft silhouette, px")
    margin: float = Field(
        0.15, ge=0, description="least room around the tracked head in the box; head lengths"
    )
    reach: float = Field(
        0.6, ge=0, description="most room, where the mattes show hair or shoulders; head lengths"
    )
    sphere_radius: float = Field(0.5, gt=0, description="of the first mesh; head lengths")
    sphere_steps: int = Field(200, ge=1, description="steps of the fit to that sphere")
    expression_prior: bool = Field(
        True, description="carry the tracked face model's expressions; networks learn the rest"
    )
    fade_start: float = Field(
        0.1, ge=0, description="distance from the face model up to which it carries; head lengths"
    )
    fade_end: float = Field(0.3, gt=0, description="distance from which on it does not")
    checkpoint_seconds: float = Field(30.0, gt=0, description="between two checkpoints")
    weights: Weights = Field(Weights(), description="factors of the loss terms")

    @property
    def settings(self) -> Settings:
        shared = {name: getattr(self, name) for name in Settings.__dataclass_fields__}
        return Settings(**{**shared, "weights": LossWeights(**self.weights.model_dump())})


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Write geometry.safetensors, mesh.ply and history.parquet to ``out``.

    Raises:
        StageError: nothing to train on, or the mesh vanished; with the cause.
    """
    dataset = Dataset(inputs["ingest"], inputs["matting"], inputs["tracking"], inputs.splits)
    face = seen_from_outside(TrackedFace.load(inputs["tracking"]))
    frames = load_frames(dataset, params.image_size, params.frames)
    box = subject_box(frames, face, params.margin, params.reach)
    frames = within_box(frames, box)
    state = train(frames, face, box, params.settings, inputs.seed, inputs.work)

    surface = extract(state, face, box, params.settings, params.output_resolution)
    mesh, parts = _neutral_mesh(state, surface, face, frames, params.settings)
    networks = {f"net.{name}": value for name, value in state.networks.state_dict().items()}
    save_file(mesh | networks, out / "geometry.safetensors")
    write_ply(out / "mesh.ply", mesh["vertices"], mesh["faces"], mesh["colours"])
    rows = [{"step": step, "term": term, "value": value} for step, term, value in state.history]
    write_table(out / "history.parquet", schemas.HISTORY, rows)
    preview = _preview(dataset, state, surface, face, params.settings)
    (out / "preview.jpg").write_bytes(encode_jpeg(preview, 90))
    write_json(
        out / "summary.json",
        {
            "vertices": len(mesh["vertices"]),
            "triangles": len(mesh["faces"]),
            "parts_removed": parts - 1,
            "box": {"lower": box.lower.round(4).tolist(), "upper": box.upper.round(4).tolist()},
            "timesteps": len(frames),
            "views": sum(len(frame.views) for frame in frames),
            "steps": state.step,
            "loss": _last_values(state),
            "warnings": _warnings(mesh, state),
        },
    )


def _neutral_mesh(
    state: TrainingState,
    surface: Surface,
    face: TrackedFace,
    frames: list[TrainingFrame],
    settings: Settings,
) -> tuple[dict[str, Tensor], int]:
    """The tensors of the artifact, and how many parts the surface had."""
    poses = torch.stack([frame.pose_vector for frame in frames])
    typical = poses[(poses - poses.median(0).values).norm(dim=1).argmin()]
    rest = torch.zeros(len(face.basis))
    with torch.no_grad():
        animated = animate(state.networks, surface, state.landmarks, rest, typical, face, settings)
    part = largest_component(surface.faces, len(surface.vertices))
    kept = part.vertices
    return {
        "vertices": surface.vertices[kept].contiguous(),
        "faces": part.faces.contiguous(),
        "features": surface.features[kept].contiguous(),
        "colours": animated.colours[kept, :3].contiguous(),
        "landmarks": state.landmarks.detach().clone(),
    }, part.parts


def _preview(
    dataset: Dataset,
    state: TrainingState,
    surface: Surface,
    face: TrackedFace,
    settings: Settings,
) -> Image:
    """Photos of one training timestep above the animated mesh, and the neutral mesh as clay."""
    views = _preview_views(dataset.train)
    rows: dict[str, dict[str, Image]] = {"photo": {}, "coloured": {}, "shaded": {}, "neutral": {}}
    for view in views:
        pose, expression = view.motion
        camera = dataset.cameras[view.camera]
        frame = TrainingFrame(
            view.sequence, view.timestep, pose, torch.from_numpy(expression), face.landmarks, ()
        )
        with torch.no_grad():
            animated = animate(
                state.networks, surface, state.landmarks, frame.expression, frame.pose_vector,
                face, settings,
            )  # fmt: skip
        world = frame.to_world(animated.vertices)
        rest = frame.to_world(surface.vertices)
        rows["photo"][view.camera] = dataset.image(view)
        rows["coloured"][view.camera] = coloured_picture(
            world, surface.faces, animated.colours[:, :3], camera
        )
        rows["shaded"][view.camera] = shaded_picture(world, surface.faces, camera)
        rows["neutral"][view.camera] = shaded_picture(rest, surface.faces, camera)
    return contact_sheet(rows, [view.camera for view in views], side=256)


def _preview_views(views: list[View]) -> list[View]:
    """The middle training timestep, in cameras spread over those that see it."""
    middle = views[len(views) // 2]
    same = [view for view in views if view.key[:2] == middle.key[:2]]
    count = min(_PREVIEW_VIEWS, len(same))
    return [same[index * len(same) // count] for index in range(count)]


def _last_values(state: TrainingState) -> dict[str, float]:
    return {term: round(value, 6) for _, term, value in state.history}


def _warnings(mesh: dict[str, Tensor], state: TrainingState) -> list[str]:
    found: list[Any] = []
    overlap = 1 - _last_values(state)["silhouette"]
    if overlap < 0.85:
        found.append(
            f"In the last step the silhouettes overlap the mattes by only {overlap:.0%}: look at "
            "the preview; mattes, poses and cameras may disagree."
        )
    if len(mesh["vertices"]) > 40_000:
        found.append(
            f"The mesh has {len(mesh['vertices'])} vertices; the avatar stage makes a Gaussian of "
            "each. Lower geometry.output_resolution if that is too slow."
        )
    return found
