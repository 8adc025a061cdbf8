"""Avatar: Gaussians on the neutral head, trained with their networks against all training views.

Reads ingest, matting, tracking and geometry. Writes ``avatar.safetensors`` and ``avatar.json`` (the
avatar, see :class:`gha_core.avatar.Avatar`), ``milestones.safetensors`` (how it was on the way) and
``history.parquet``. Keeps a checkpoint in the work folder; killed and run again, it goes on from
there and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.contact_sheet import contact_sheet
from gha_core.artifacts.images import Image, encode_jpeg
from gha_core.artifacts.stage_folder import licences as recorded
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import write_table
from gha_core.avatar import Avatar
from gha_core.avatar.head import GaussianHead, HeadConfig
from gha_core.avatar.initialise import Photo, Surface, neutral_gaussians
from gha_core.avatar.milestones import collect
from gha_core.avatar.samples import TrainingViews
from gha_core.avatar.super_resolution import SuperResolution
from gha_core.avatar.training import History, Rates, TrainingConfig, Weights, train
from gha_core.dataset import Dataset
from gha_core.losses import PerceptualDistance
from gha_core.tracked_face import TrackedFace
from tasks.stage import Inputs, StageParams

LINEAGE = (
    ("ingest", "frames.parquet"),
    ("ingest", "cameras.parquet"),
    ("ingest", "backgrounds.parquet"),
    ("matting", "alpha.parquet"),
    ("tracking", "identity.safetensors"),
    ("tracking", "tracking.parquet"),
    ("geometry", "geometry.safetensors"),
)
_COLOUR_PHOTOS = 48
_PREVIEW_ROWS = 6


class LearningRates(StageParams):
    """Adam's learning rates at the first step."""

    positions: float = Field(2e-3, ge=0, description="head lengths")
    scales: float = Field(0.015, ge=0, description="of log-scales")
    rotations: float = Field(0.015, ge=0, description="of quaternions")
    opacities: float = Field(2e-2, ge=0, description="of logits")
    colours: float = Field(0.015, ge=0, description="of each Gaussian's own channels")
    features: float = Field(0.015, ge=0, description="of what the networks read")
    body: float = Field(2e-2, ge=0, description="of logits: does a Gaussian go with the torso")
    harmonics: float = Field(2e-3, ge=0, description="of how colours change with the view")
    networks: float = Field(2e-3, ge=0, description="the six dynamic networks")
    super_resolution: float = Field(2e-3, ge=0, description="the super-resolution network")
    pose_correction: float = Field(5e-5, ge=0, description="rad, head lengths; paper: 1e-5")
    expression_correction: float = Field(
        0.0, ge=0, description="of each training frame's expression coefficients; 0 = none"
    )
    camera_colour: float = Field(
        0.0, ge=0, description="of each training camera's difference in colour; 0 = none"
    )


class LossWeights(StageParams):
    """Weights of the loss terms."""

    picture: float = Field(1.0, ge=0, description="L1 of the picture")
    small: float = Field(1.0, ge=0, description="L1 of the small picture, where there is one")
    perceptual: float = Field(0.0, ge=0, description="perceptual distance, at both sizes")
    structure: float = Field(2.0, ge=0, description="structural dissimilarity of the picture")
    silhouette: float = Field(0.1, ge=0, description="soft IoU of the silhouette and the matte")


class Params(StageParams):
    """How the avatar is built and trained."""

    steps: int = Field(3600, ge=1, description="training steps; paper: 600000")
    views: int = Field(
        2,
        ge=1,
        le=64,
        description="views per step, a core each: of one timestep if it has so many cameras",
    )
    gaussians: int = Field(14_000, ge=100, le=1_000_000, description="number of Gaussians")
    channels: int = Field(
        32, ge=3, le=256, description="of the small image that super-resolution enlarges"
    )
    features: int = Field(32, ge=1, le=128, description="per Gaussian, read by the networks")
    width: int = Field(32, ge=8, le=1024, description="of the networks' hidden layers")
    super_resolution_width: int = Field(
        0, ge=0, le=256, description="of its hidden layers; 0: Gaussians draw the picture alone"
    )
    super_resolution_scale: Literal[2, 4] = Field(
        2, description="by how much it enlarges; paper: 4"
    )
    sharp: bool = Field(
        True, description="draw colours at full size, too; the papers enlarge small ones"
    )
    geometry: bool = Field(
        True, description="start on the geometry stage's mesh; false: on the face model's"
    )
    relocations: int = Field(
        4,
        ge=0,
        description="how often, in the first half, Gaussians move to where the error is",
    )
    relocated: float = Field(0.08, gt=0, le=0.3, description="share that moves each time")
    reach: tuple[float, float] = Field(
        (0.15, 0.25),
        description="distances from the landmarks (head lengths) within which only the expression "
        "acts on a Gaussian, and beyond which only the pose does",
    )
    expression_prior: bool = Field(
        True, description="the face model's expressions carry the Gaussians, networks add the rest"
    )
    expression_networks: bool = Field(
        True, description="networks move and colour the Gaussians by expression"
    )
    attribute_networks: bool = Field(
        True, description="networks change size, rotation and opacity of the Gaussians"
    )
    pose_shading: bool = Field(
        True,
        description="colours change with the head's rotation, for lamps that do not turn with it; "
        "false: the pose colours only what it controls, by a network, as published",
    )
    view_dependence: bool = Field(
        False, description="colours change with the direction of sight, as what shines does"
    )
    crop: int = Field(
        160,
        ge=32,
        description="side of the part of each picture that a step draws at full size, px",
    )
    scale_augmentation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="super-resolution learns with features shrunk or enlarged by up to this share; "
        "paper: 0.25",
    )
    final_rate: float = Field(0.1, gt=0, le=1, description="learning rates fall to this share")
    warm_up: int = Field(0, ge=0, description="steps over which the learning rates rise at first")
    rare_expressions: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0: every frame is seen as often; 1: in inverse proportion to how many look "
        "alike, but for a quarter",
    )
    rates: LearningRates = Field(LearningRates(), description="learning rates")
    weights: LossWeights = Field(LossWeights(), description="weights of the losses")
    checkpoint_seconds: float = Field(20.0, ge=0, description="time between checkpoints, s")

    def training(self) -> TrainingConfig:
        """What of it the training loop wants."""
        return TrainingConfig(
            steps=self.steps,
            views=self.views,
            rates=Rates(**self.rates.model_dump()),
            weights=Weights(**self.weights.model_dump()),
            final_rate=self.final_rate,
            crop=self.crop,
            sharp=self.sharp,
            relocations=self.relocations,
            relocated=self.relocated,
            checkpoint_seconds=self.checkpoint_seconds,
            warm_up=self.warm_up,
        )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Train the avatar. See the module's docstring for the files.

    Raises:
        StageError: no training view, an empty mesh, or a training that breaks down.
    """
    dataset = Dataset(inputs["ingest"], inputs["matting"], inputs["tracking"], inputs.splits)
    lineage = {f"{stage}/{name}": _sha256(inputs[stage] / name) for stage, name in LINEAGE}
    views = TrainingViews(
        dataset,
        inputs.seed,
        params.super_resolution_scale,
        params.scale_augmentation,
        params.rare_expressions,
    )
    torch.manual_seed(inputs.seed)
    face = TrackedFace.load(inputs["tracking"])
    surface = Surface.load(inputs["geometry"]) if params.geometry else Surface.of_face(face)
    head, super_resolution = build(face, surface, views, params)
    perceptual = PerceptualDistance() if params.weights.perceptual else None
    history = train(
        head,
        super_resolution,
        views,
        perceptual,
        params.training(),
        inputs.work,
        _fingerprint(inputs, params, lineage),
    )
    licences = {
        "face model": face.licence,
        **recorded(inputs["matting"]),
        **recorded(inputs["tracking"]),
    }
    if perceptual is not None:
        licences[PerceptualDistance.NAME] = PerceptualDistance.LICENCE
    avatar = Avatar(head, super_resolution, params.sharp, face.expression_names, lineage, licences)
    avatar.save(out)
    trained = {"head": head, "super_resolution": super_resolution}
    collect(inputs.work, params.steps, trained, out)
    rows = [{"step": step, "term": term, "value": value} for step, term, value in history]
    write_table(out / "history.parquet", schemas.HISTORY, rows)
    (out / "preview.jpg").write_bytes(encode_jpeg(_preview(avatar, views), 90))
    write_json(out / "summary.json", _summary(head, views, history, params))


def build(
    face: TrackedFace, surface: Surface, views: TrainingViews, params: Params
) -> tuple[GaussianHead, SuperResolution | None]:
    """The untrained avatar: it already shows the tracked face in its first colours."""
    neutral = neutral_gaussians(
        face,
        surface,
        count=params.gaussians,
        feature_size=params.features,
        reach=params.reach,
        prior=params.expression_prior,
        photos=_photos(views),
        seed=views.seed,
    )
    width = params.super_resolution_width
    channels = params.channels if width else 3
    head = GaussianHead(
        HeadConfig(
            gaussians=len(neutral.positions),
            expression_gaussians=int((neutral.weight > 0).sum()),
            face_gaussians=int((neutral.weight == 1).sum()),
            expressions=len(neutral.shift),
            channels=channels,
            features=params.features,
            width=params.width,
            pose_shading=params.pose_shading,
            expression_networks=params.expression_networks,
            attribute_networks=params.attribute_networks,
            view_dependence=params.view_dependence,
        )
    )
    head.start_from(neutral)
    poses = [frame.pose for frame in views.frames]
    head.set_ranges(poses, np.stack([frame.expression for frame in views.frames]))
    scale = params.super_resolution_scale
    return head, SuperResolution(channels, width, scale) if width else None


def _photos(views: TrainingViews) -> list[Photo]:
    """Training views spread over time and cameras, for the first colours."""
    frames = views.frames[:: max(1, len(views.frames) * 4 // _COLOUR_PHOTOS)]
    photos = []
    for index, frame in enumerate(frames):
        for offset in range(min(4, len(frame.views))):
            view = frame.views[(index + offset * len(frame.views) // 4) % len(frame.views)]
            image, alpha = views.picture(view)
            photos.append(Photo(image, alpha, views.camera(view), frame.pose, frame.expression))
    return photos


def _preview(avatar: Avatar, views: TrainingViews) -> Image:
    """Photo and avatar side by side, for training views spread over time and cameras."""
    frames = views.frames[:: max(1, len(views.frames) // _PREVIEW_ROWS)][:_PREVIEW_ROWS]
    rows: dict[str, dict[str, Image]] = {"photo": {}, "avatar": {}}
    for index, frame in enumerate(frames):
        view = frame.views[index % len(frame.views)]
        label = f"{view.sequence} {view.timestep} {view.camera}"
        rows["photo"][label] = views.picture(view)[0]
        rows["avatar"][label] = avatar.render(views.camera(view), frame.pose, frame.expression)[0]
    return contact_sheet(rows, list(rows["photo"]), side=256)


def _summary(
    head: GaussianHead, views: TrainingViews, history: History, params: Params
) -> dict[str, Any]:
    final = {term: value for _, term, value in history}
    return {
        "gaussians": head.config.gaussians,
        "gaussians_controlled_by_expression": head.config.expression_gaussians,
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "steps": params.steps,
        "training_timesteps": len(views.frames),
        "training_views": views.count,
        "losses_at_the_end": {term: round(value, 5) for term, value in sorted(final.items())},
    }


def _fingerprint(inputs: Inputs, params: Params, lineage: dict[str, str]) -> str:
    # How often checkpoints are written changes nothing in them.
    relevant = params.model_dump_json(exclude={"checkpoint_seconds"})
    parts = [relevant, inputs.splits.model_dump_json(), str(inputs.seed), *lineage.values()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
