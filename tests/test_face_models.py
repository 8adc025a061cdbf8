"""Face models from the user's own files: read without running them, checked, and tracked with."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from test_fitting import Actor, rig, write_inputs

from gha_core.artifacts import schemas
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_table
from gha_core.assets import ASSETS
from gha_core.errors import AssetError
from gha_core.faces import FaceModel, face_model, head_model
from gha_core.faces.adapt import adapt
from gha_core.faces.head_model import _detector
from gha_core.faces.model_files import READERS, Shape, fingerprint, read_shape
from gha_core.faces.pickles import read_pickle, to_array
from gha_core.pose import HeadPose
from tasks import tracking

Floats = NDArray[np.float64]
V, F = 6, 4
RNG = np.random.default_rng(4)
MEAN, FACES = RNG.normal(size=(V, 3)), RNG.permuted(np.tile(np.arange(V), (F, 1)), axis=1)[:, :3]
FACES[0] = 0, 1, 5
BASIS = RNG.normal(size=(4, V, 3))
COLUMNS = BASIS.reshape(4, -1).T


class Chumpy:
    """Pickles as one of chumpy's arrays does."""

    def __init__(self, x: Floats) -> None:
        self.x = x


Chumpy.__module__, Chumpy.__qualname__ = "chumpy.ch", "Ch"


@pytest.fixture(autouse=True)
def chumpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in to write files with; reading must do without."""
    module = types.ModuleType("chumpy.ch")
    module.Ch = Chumpy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", module)


def flame(path: Path, shape: Shape, protocol: int = 2) -> Path:
    count = len(shape.mean)
    content = {
        "v_template": Chumpy(shape.mean),
        "shapedirs": Chumpy(shape.identity.transpose(1, 2, 0)),
        "f": shape.faces.astype(np.uint32),
        "J_regressor": scipy.sparse.csc_matrix(np.eye(5, count)),
        "weights": np.ones((count, 5)),
        "kintree_table": np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        "bs_type": "lrotmin",
    }
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def bfm(path: Path, shape: Shape) -> Path:
    columns = shape.identity.reshape(len(shape.identity), -1).T
    spread = np.linalg.norm(columns, axis=0)
    content = {
        "shapeMU": shape.mean.reshape(-1, 1).astype(np.float32),
        "shapePC": (columns / spread).astype(np.float32),
        "shapeEV": spread[:, None],
        "tl": shape.faces + 1.0,
    }
    scipy.io.savemat(path, content)
    return path


def faceverse(path: Path, shape: Shape) -> Path:
    content = {
        "meanshape": shape.mean.reshape(1, -1).astype(np.float32),
        "idBase": shape.identity.reshape(len(shape.identity), -1).T.astype(np.float32),
        "tri": shape.faces,
        "exp_name_list_52": list(shape.expressions),
        "exBase_52": np.stack([moves.ravel() for moves in shape.expressions.values()], 1),
    }
    np.save(path, np.array(content), allow_pickle=True)
    return path


def obj(path: Path, vertices: Floats, faces: NDArray[np.int64]) -> None:
    lines = ["# made", "usemtl M_Face"]
    lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in vertices] + ["vt 0 0"]
    lines += ["f " + " ".join(f"{index + 1}/1" for index in face) for face in faces]
    path.write_text("\n".join(lines) + "\n")


def ict(path: Path, shape: Shape) -> Path:
    path.mkdir()
    obj(path / "generic_neutral_mesh.obj", shape.mean, shape.faces)
    for index, moves in enumerate(shape.identity):
        obj(path / f"identity{index:03d}.obj", shape.mean + moves, shape.faces)
    for name, moves in shape.expressions.items():
        obj(path / f"{name}.obj", shape.mean + moves, shape.faces)
    return path


SMALL = Shape(MEAN, FACES, BASIS, {"jawOpen": BASIS[0], "cheekPuff_L": BASIS[1]})
WRITERS: dict[str, Callable[[Path, Shape], Path]] = {
    "flame": flame,
    "bfm": bfm,
    "faceverse": faceverse,
    "ict": ict,
}
SUFFIX = {"flame": ".pkl", "bfm": ".mat", "faceverse": ".npy", "ict": ""}


@pytest.mark.parametrize("family", WRITERS)
def test_each_family_is_read_as_it_was_made(family: str, tmp_path: Path) -> None:
    path = WRITERS[family](tmp_path / f"model{SUFFIX[family]}", SMALL)
    found = read_shape(family, path)
    np.testing.assert_allclose(found.mean, MEAN, atol=1e-5)
    np.testing.assert_allclose(found.identity, BASIS, atol=1e-5)
    np.testing.assert_array_equal(found.faces, FACES)
    if family in ("ict", "faceverse"):
        np.testing.assert_allclose(found.expressions["jawOpen"], BASIS[0], atol=1e-5)
        np.testing.assert_allclose(found.expressions["cheekPuff"], BASIS[1], atol=1e-5)
    else:
        assert not found.expressions
    assert fingerprint(family, path) != fingerprint(family, Path(__file__))


def test_both_sides_of_an_undivided_expression_are_added(tmp_path: Path) -> None:
    sides = {"browInnerUp_L": BASIS[0], "browInnerUp_R": BASIS[1], "eyeBlink_R": BASIS[2]}
    found = read_shape("ict", ict(tmp_path / "ict", Shape(MEAN, FACES, BASIS, sides))).expressions
    assert set(found) == {"browInnerUp", "eyeBlinkRight"}
    np.testing.assert_allclose(found["browInnerUp"], BASIS[0] + BASIS[1], atol=1e-6)


def test_polygons_are_fanned_out_and_films_over_the_eyes_left_out(tmp_path: Path) -> None:
    folder = ict(tmp_path / "ict", SMALL)
    neutral = folder / "generic_neutral_mesh.obj"
    lines = [line for line in neutral.read_text().splitlines() if not line.startswith("f ")]
    lines += ["f 1/1 3/1 4/1 6/1", "usemtl M_EyeLashes", "f 1/1 2/1 5/1"]
    neutral.write_text("\n".join(lines))
    found = read_shape("ict", folder)
    np.testing.assert_allclose(found.mean, MEAN[[0, 2, 3, 5]], atol=1e-6)
    assert found.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert found.identity.shape == (4, 4, 3)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_of_all_protocols_and_kinds_are_read(protocol: int, tmp_path: Path) -> None:
    content = {
        "plain": MEAN,
        "turned": np.asfortranarray(MEAN),
        "big": MEAN.astype(">f4"),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "number": np.float32(2.5),
        "numbers": np.array([1, 2], object),
        "list": [1, 2, 3],
        "chumpy": Chumpy(MEAN),
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(path)
    for name, value in content.items():
        value = value.x if isinstance(value, Chumpy) else value
        np.testing.assert_array_equal(to_array(found[name]), value, err_msg=name)


@dataclass
class Attack:
    """Pickles as a call of ``function``."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("family", ["flame", "faceverse"])
@pytest.mark.parametrize(
    "function", [os.system, exec, subprocess.check_output, np.load, np.frombuffer, scipy.io.loadmat]
)
def test_a_hostile_pickle_is_refused_and_does_not_run(
    family: str, function: Callable[..., Any], tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    command = f"touch {mark}"
    if function is exec:
        command = f"open({str(mark)!r}, 'w')"
    argument = ["touch", str(mark)] if function is subprocess.check_output else command
    content = {"v_template": MEAN, "meanshape": Attack(function, (argument,)), "f": FACES}
    path = tmp_path / f"model{SUFFIX[family]}"
    if family == "flame":
        path.write_bytes(pickle.dumps(content))
    else:
        np.save(path, np.array(content), allow_pickle=True)
    with pytest.raises(
        AssetError, match=r"was not read, because it asks for .*which no face model"
    ):
        read_shape(family, path)
    assert not mark.exists()


def test_known_packages_are_never_imported_for_a_pickle(tmp_path: Path) -> None:
    """Not even by names with dots, which lead from a harmless module to others."""
    path, mark = tmp_path / "model.pkl", tmp_path / "ran"
    call = b"cscipy.sparse._csc\nnp.os.system\n(V" + f"touch {mark}".encode() + b"\ntR."
    path.write_bytes(b"\x80\x04(" + b"Vv_template\n" + call[:-1] + b"d.")
    assert "np.os.system" in read_pickle(path)["v_template"].origin
    with pytest.raises(AssetError, match="'v_template' is a scipy"):
        read_shape("flame", path)
    assert not mark.exists()


def changed(**changes: Any) -> Shape:
    return Shape(**({"mean": MEAN, "faces": FACES, "identity": BASIS} | changes))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (changed(identity=BASIS[:, 1:]), r"'shapedirs' has shape \(5, 3, 4\), expected "
         r"\(V, 3, \*\) with V = 6 as in 'v_template'"),
        (changed(faces=FACES + 3), r"'f' name vertices 3 to 8, expected 0 to 5 or 1 to 6"),
        (changed(mean=MEAN[:, :2]), r"'v_template' has shape \(6, 2\), expected \(V, 3\)"),
        (changed(mean=MEAN * np.nan), "'v_template' has values that are not finite"),
    ],
)  # fmt: skip
def test_wrong_shapes_are_named(shape: Shape, message: str, tmp_path: Path) -> None:
    path = flame(tmp_path / "model.pkl", shape)
    with pytest.raises(AssetError, match=f"{path.name}.*{message}"):
        read_shape("flame", path)


def test_missing_keys_and_damaged_files_are_named(tmp_path: Path) -> None:
    pickled = tmp_path / "other.pkl"
    pickled.write_bytes(pickle.dumps({"betas": MEAN}))
    with pytest.raises(AssetError, match=r"no key 'v_template'. Found: betas"):
        read_shape("flame", pickled)
    for family in READERS:
        path = tmp_path / f"damaged{SUFFIX[family]}"
        if family == "ict":
            path.mkdir()
        else:
            path.write_bytes(b"\x93NUMPY nonsense")
        with pytest.raises(AssetError, match="damaged"):
            read_shape(family, path)
        with pytest.raises(AssetError, match=r"There is no .*face-models.md"):
            fingerprint(family, tmp_path / "absent")
    bad = ict(tmp_path / "ict", SMALL)
    obj(bad / "jawOpen.obj", MEAN[:5], FACES[:0])
    with pytest.raises(AssetError, match=r"jawOpen.obj has 5 vertices, expected 6"):
        read_shape("ict", bad)
    np.save(tmp_path / "plain.npy", MEAN)
    with pytest.raises(AssetError, match="expected one dictionary"):
        read_shape("faceverse", tmp_path / "plain.npy")


def test_the_model_and_its_file_belong_together(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="face_model_path must name"):
        face_model("flame")
    with pytest.raises(AssetError, match="needs no file"):
        face_model("anny", tmp_path)
    assert all(ASSETS[name].optional and ASSETS[name].licence for name in READERS)


# a head of other axes, unit, order of vertices and shape ------------------------------------------


@pytest.fixture(scope="module")
def head() -> FaceModel:
    return head_model()


def bent(points: Floats) -> Floats:
    """Another head's shape: longer, with a broader jaw."""
    wide = 1 + 0.08 * np.clip(0.2 - points[:, 1], 0, 0.6)
    return np.stack([points[:, 0] * wide, 1.04 * points[:, 1], points[:, 2]], 1)


class Stranger:
    """The open head in disguise, as a file of others would have it."""

    def __init__(self, head: FaceModel, parts: Callable[[FaceModel], torch.Tensor]) -> None:
        kept = parts(head)[head.faces].all(1)
        used, faces = np.unique(head.faces[kept].numpy(), return_inverse=True)
        shuffle = np.random.default_rng(9).permutation(len(used))
        self.used = used[shuffle]
        self.turn = 1000.0 * np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # mm, z up
        rest = head.mean.double().numpy()
        self.mean = bent(rest)[self.used]
        place = np.argsort(shuffle)
        self.shape = Shape(
            self.mean @ self.turn.T + [10.0, -2000, 5],
            place[faces.reshape(-1, 3)][:, ::-1],  # and inside out
            head.identity_basis.double().numpy()[:12, self.used] @ self.turn.T,
        )
        moved = rest + head.expression_basis.double().numpy()
        self.expressions = np.stack([bent(each)[self.used] for each in moved]) - self.mean


@pytest.fixture(scope="module")
def flame_like(head: FaceModel) -> Stranger:
    return Stranger(head, lambda m: ~m.regions["teeth"] & ~m.regions["tongue"])


@pytest.fixture(scope="module")
def flame_file(flame_like: Stranger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {
        "v_template": flame_like.shape.mean,
        "shapedirs": flame_like.shape.identity.transpose(1, 2, 0),
        "f": flame_like.shape.faces,
    }
    path = tmp_path_factory.mktemp("models") / "generic_model.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def test_axes_unit_expressions_and_regions_are_found(
    head: FaceModel, flame_like: Stranger, flame_file: Path
) -> None:
    found = adapt(read_shape("flame", flame_file), head, _detector())
    mean = found.mean.double().numpy()
    assert np.linalg.norm(mean - flame_like.mean, axis=1).max() < 0.04
    assert found.expression_names == head.expression_names
    for name in ("jawOpen", "mouthSmileLeft", "eyeBlinkRight", "browInnerUp", "mouthPucker"):
        index = found.expression_names.index(name)
        true, carried = flame_like.expressions[index], found.expression_basis[index].numpy()
        off = np.linalg.norm(carried - true, axis=1).mean() / np.linalg.norm(true, axis=1).mean()
        assert off < 0.35, (name, off)
    for name in ("face", "lips", "eyes", "eyelids", "ears", "scalp", "neck"):
        true = head.regions[name][flame_like.used]
        both = (true & found.regions[name]).sum() / (true | found.regions[name]).sum()
        assert both > 0.7, (name, float(both))


def test_a_mask_of_a_face_has_no_other_parts(head: FaceModel) -> None:
    mask = Stranger(head, lambda m: m.regions["face"] | m.regions["lips"])
    found = adapt(mask.shape, head, _detector())
    for name in ("tongue", "teeth", "neck"):
        assert found.regions[name].float().mean() < 0.02, name
    assert found.regions["face"].float().mean() > 0.9
    index = found.expression_names.index("jawOpen")
    true, carried = mask.expressions[index], found.expression_basis[index].numpy()
    assert np.linalg.norm(carried - true, axis=1).mean() < 0.3 * np.linalg.norm(true, axis=1).mean()


def test_what_is_no_face_is_refused(head: FaceModel) -> None:
    ball = RNG.normal(size=(200, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    faces = RNG.integers(0, 200, (400, 3))
    with pytest.raises(AssetError, match="finds no face"):
        adapt(Shape(ball, faces, ball[None]), head, _detector())


def test_tracking_with_another_model(
    head: FaceModel,
    flame_like: Stranger,
    flame_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = importlib.import_module("gha_core.faces.head_model")
    # Fewer portraits than a user's, and in a folder of its own.
    monkeypatch.setattr(models, "head_model", lambda: head)
    monkeypatch.setattr(models, "asset_folder", lambda: tmp_path / "assets")
    monkeypatch.setattr(tracking, "face_model", lambda n, p: face_model(n, p, portraits=40))
    actor = Actor(head, 8)
    inputs = write_inputs(tmp_path / "capture", actor.seen(rig(3)))
    params = tracking.Params(iterations=8, face_model="flame", face_model_path=flame_file)
    out = tmp_path / "capture/out"
    tracking.run(inputs, params, out)
    licence = ASSETS["flame"].licence
    assert f"face model: flame; licence: {licence}" in capsys.readouterr().out
    facts = read_json(out / "summary.json")
    assert facts["face_model"]["name"] == "flame"
    assert facts["tracked"] == 8
    with safe_open(out / "identity.safetensors", framework="np") as file:
        metadata = file.metadata()
        names = ("neutral_vertices", "expression_basis", "region.face")
        vertices, basis, regions = (file.get_tensor(name) for name in names)
    assert metadata["licence"] == licence
    assert metadata["sha256"] == fingerprint("flame", flame_file)
    assert len(vertices) == len(flame_like.mean)
    assert regions.sum() > 1000
    rows = read_table(out / "tracking.parquet", schemas.TRACKING).to_pylist()
    moving = np.flatnonzero(actor.expression.std(0) > 0.1)
    assert len(moving) >= 2
    for column in moving:
        found = np.array([row["expression"][column] for row in rows])
        assert np.corrcoef(found, actor.expression[:, column])[0, 1] > 0.8
    pose = HeadPose(*(np.array(rows[0][k]) for k in ("rotation", "translation")), rows[0]["scale"])
    moved = vertices + np.tensordot(rows[0]["expression"], basis, 1)
    off = np.linalg.norm(pose.to_world(moved) - actor.world(0)[flame_like.used], axis=1)
    assert off[regions.astype(bool)].mean() < 0.006
    # Another run takes the adapted model from the folder.
    built = next((tmp_path / "assets").glob("flame-*.safetensors"))
    before = built.stat().st_mtime_ns
    face_model("flame", flame_file, portraits=40)
    assert built.stat().st_mtime_ns == before
