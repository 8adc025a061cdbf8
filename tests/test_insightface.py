"""Landmarks by insightface: its interface, our numbering, and what stands in its way."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gha_core.errors import AssetError
from gha_core.landmarks import FaceMeshDetector, InsightFaceDetector
from gha_core.landmarks.insightface import INNER_106, JAW, MODELS, PACK, POINTS_68
from gha_core.landmarks.points import (
    FACE_OVAL,
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_BROW,
    RIGHT_EYE,
)
from tests.fake_packages import install, remove

IMAGE = np.zeros((200, 300, 3), np.uint8)


def surface(yaw: float = 0.0) -> NDArray[np.float64]:
    """[68, 3] pixels: the jaw around an upright cylinder, the rest on its front, the nose's tip."""
    jaw = np.linspace(-np.pi / 2, np.pi / 2, JAW)
    inner = np.linspace(-0.6, 0.6, 68 - JAW)
    angles = np.concatenate([jaw, inner])
    angles[30] = 0
    x = 150 + 50 * np.sin(angles + yaw)
    y = np.concatenate([100 + 50 * np.cos(jaw), np.linspace(60, 120, 68 - JAW)])
    return np.stack([x, y, np.zeros(68)], axis=1)


def face(yaw: float = 0.0, apart: float = 0.0, score: float = 0.9, shift: float = 0.0) -> dict:
    points = surface(yaw) + np.array([shift, 0, 0])
    seen = np.full((106, 2), -1000.0)  # whatever is read by mistake is far away
    seen[list(INNER_106)] = points[JAW:, :2] + np.array([apart, 0])
    box = np.concatenate([points[:, :2].min(0), points[:, :2].max(0)])
    return {"bbox": box, "det_score": score, "landmark_3d_68": points, "landmark_2d_106": seen}


class FakeFaceAnalysis:
    """Has the methods of insightface.app.FaceAnalysis that we call."""

    faces: list[dict] = []  # noqa: RUF012
    calls: list[dict[str, Any]] = []  # noqa: RUF012
    modules = MODELS

    def __init__(self, name: str, root: str, allowed_modules: list[str], **options: Any) -> None:
        self.models = dict.fromkeys(self.modules)
        self.calls.append({"name": name, "root": root, "modules": allowed_modules, **options})

    def prepare(self, ctx_id: int, det_thresh: float, det_size: tuple[int, int]) -> None:
        self.calls[-1] |= {"ctx_id": ctx_id, "det_thresh": det_thresh, "det_size": det_size}

    def get(self, img: NDArray[np.uint8]) -> list[dict]:
        assert img.flags.c_contiguous
        self.calls[-1]["pixel"] = img[0, 0].tolist()
        return self.faces


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """insightface's folder, with the pack."""
    folder = tmp_path / "models" / PACK
    folder.mkdir(parents=True)
    (folder / "1k3d68.onnx").write_bytes(b"not a model")
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeFaceAnalysis]:
    class Analysis(FakeFaceAnalysis):
        faces: list[dict] = []  # noqa: RUF012
        calls: list[dict[str, Any]] = []  # noqa: RUF012

    install(monkeypatch, "insightface.app", FaceAnalysis=Analysis)
    return Analysis


def test_the_mean_of_both_models_lands_on_our_numbers(
    pack: Path, fake: type[FakeFaceAnalysis]
) -> None:
    fake.faces = [face(apart=2.0)]
    found = InsightFaceDetector(pack).detect(IMAGE)
    assert found is not None
    expected = surface()[:, :2] + 0.5  # from OpenCV's pixel centres to ours
    expected[JAW:, 0] += 1.0  # half of what the models are apart
    np.testing.assert_allclose(found.points[list(POINTS_68)], expected, atol=1e-4)
    others = np.setdiff1d(np.arange(478), POINTS_68)
    assert np.isnan(found.points[others]).all()
    assert (found.visibility[others] == 0).all()
    np.testing.assert_allclose(found.box, [*expected.min(0), *expected.max(0)], atol=1e-4)


def test_our_numbers_are_the_same_places_of_the_face() -> None:
    assert len(POINTS_68) == len(set(POINTS_68)) == 68
    assert len(INNER_106) == len(set(INNER_106)) == 68 - JAW
    order = np.array(POINTS_68)
    assert set(order[:17]) <= set(FACE_OVAL)
    assert order[8] == 152  # the chin
    assert set(order[17:22]) <= set(RIGHT_BROW)
    assert set(order[22:27]) <= set(LEFT_BROW)
    assert set(order[36:42]) <= set(RIGHT_EYE)
    assert set(order[42:48]) <= set(LEFT_EYE)
    assert set(order[48:60]) <= set(LIPS_OUTER)
    assert set(order[60:]) <= set(LIPS_INNER)
    assert (order[36], order[39], order[42], order[45]) == (33, 133, 362, 263)  # corners
    # Every contour runs the same way round as iBUG's: upper lids and lips first, left to right.
    for first, corner, contour in ((36, 39, RIGHT_EYE), (48, 54, LIPS_OUTER), (60, 64, LIPS_INNER)):
        upper = [contour.index(order[index]) for index in range(first + 1, corner)]
        assert upper == sorted(upper, reverse=True)
        assert min(upper) > contour.index(order[corner])


def test_models_that_disagree_are_trusted_less(pack: Path, fake: type[FakeFaceAnalysis]) -> None:
    detector, trusts = InsightFaceDetector(pack), []
    for apart in (0.0, 3.0, 12.0):
        fake.faces = [face(apart=apart)]
        found = detector.detect(IMAGE)
        assert found is not None
        trusts.append(found.confidence)
    assert trusts[0] == pytest.approx(0.9)
    assert 0.3 < trusts[1] < trusts[0]
    assert trusts[2] < 0.1


def test_a_turned_head_hides_its_far_side(pack: Path, fake: type[FakeFaceAnalysis]) -> None:
    fake.faces = [face(yaw=0.9)]
    found = InsightFaceDetector(pack).detect(IMAGE)
    assert found is not None
    jaw = found.visibility[list(POINTS_68[:JAW])]
    assert jaw[-1] == 0 < 0.5 < jaw[2]
    assert 0.1 < found.confidence < 0.9


def test_the_largest_central_face_is_taken(pack: Path, fake: type[FakeFaceAnalysis]) -> None:
    fake.faces = [face(shift=130, score=0.99), face(score=0.9)]
    found = InsightFaceDetector(pack).detect(IMAGE)
    assert found is not None
    assert abs(found.box[[0, 2]].mean() - 150.5) < 1
    fake.faces = []
    assert InsightFaceDetector(pack).detect(IMAGE) is None


@pytest.mark.parametrize("gpu", [True, False])
def test_runs_where_onnx_runtime_can(
    pack: Path, fake: type[FakeFaceAnalysis], monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    known = ["CUDAExecutionProvider"] * gpu + ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: known)
    image = IMAGE.copy()
    image[0, 0] = (1, 2, 3)
    InsightFaceDetector(pack, 0.4).detect(image)
    (call,) = fake.calls
    assert call["providers"] == known
    assert call["ctx_id"] == (0 if gpu else -1)
    assert (call["name"], call["root"]) == (PACK, str(pack))
    assert tuple(call["modules"]) == MODELS
    assert call["det_thresh"] == 0.4
    assert call["pixel"] == [3, 2, 1]  # insightface wants BGR


def test_without_the_pack_nothing_is_downloaded(
    tmp_path: Path, fake: type[FakeFaceAnalysis]
) -> None:
    with pytest.raises(AssetError, match=r"non-commercial research.*not in .*does not download"):
        InsightFaceDetector(tmp_path)
    assert not fake.calls


def test_without_the_package_or_its_runtime(
    pack: Path, fake: type[FakeFaceAnalysis], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch, "onnxruntime")
    with pytest.raises(AssetError, match="pip install insightface onnxruntime"):
        InsightFaceDetector(pack)


def test_a_pack_that_lacks_a_model(
    pack: Path, fake: type[FakeFaceAnalysis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "modules", ("detection", "landmark_3d_68"))
    with pytest.raises(AssetError, match="lacks landmark_2d_106"):
        InsightFaceDetector(pack)


def test_the_real_package_and_a_damaged_pack(pack: Path) -> None:
    """The very FaceAnalysis that is installed: takes our arguments, and its error is a sentence."""
    package: ModuleType = pytest.importorskip("insightface.app")
    assert package.FaceAnalysis is not None
    with pytest.raises(AssetError, match=r"non-commercial research.*cannot be opened"):
        InsightFaceDetector(pack)


def test_both_detectors_say_who_they_are() -> None:
    assert (FaceMeshDetector.name, FaceMeshDetector.licence) == ("facemesh", "Apache-2.0")
    assert "non-commercial" in InsightFaceDetector.licence
