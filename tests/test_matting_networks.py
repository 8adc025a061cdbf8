"""Mattes by a user's networks: their published interfaces, in TorchScript and ONNX, tiny.

TorchScript reads annotations as they stand, so that they are not postponed here.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from gha_core.artifacts import schemas
from gha_core.artifacts.images import decode_matte
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_rows, write_table
from gha_core.errors import AssetError, StageError
from gha_core.matting import BackgroundMattingNetwork, RobustVideoNetwork, cut_at_neck, neck_row
from tests.fake_packages import remove
from tests.test_matting import SIDE, bust, film, run, scene, write_ingest

States = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class TinyBackground(torch.nn.Module):
    """Alpha: the largest difference from the plate, times three. Wants sides divisible by four."""

    backbone_scale: float
    refine_mode: str
    refine_sample_pixels: int

    def __init__(self) -> None:
        super().__init__()
        self.backbone_scale, self.refine_mode, self.refine_sample_pixels = 1.0, "full", 1
        self.gain = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert src.size(2) % 4 == 0 and src.size(3) % 4 == 0  # noqa: PT018 (TorchScript)
        if self.refine_mode != "sampling" or self.refine_sample_pixels != 80000:
            raise RuntimeError("not as advised")
        pha = ((src - bgr).abs().amax(1, keepdim=True) * self.gain).clamp(0, 1)
        return pha, src, pha


class TinyVideo(torch.nn.Module):
    """Alpha: how many frames its memory has seen, in tenths."""

    def __init__(self) -> None:
        super().__init__()
        self.step = torch.nn.Parameter(torch.tensor(0.1))

    def forward(
        self,
        src: Tensor,
        r1: Tensor | None = None,
        r2: Tensor | None = None,
        r3: Tensor | None = None,
        r4: Tensor | None = None,
        downsample_ratio: float = 1.0,
        segmentation_pass: bool = False,
    ) -> States:
        seen = torch.zeros(1, 1, 1, 1) if r1 is None else r1
        seen = seen + self.step
        pha = seen.expand(1, 1, src.size(2), src.size(3))
        return src, pha, seen, seen, seen, seen * downsample_ratio


def save_script(path: Path, module: torch.nn.Module) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def save_onnx(path: Path, nodes: list, inputs: dict, outputs: dict, constants: dict) -> Path:
    """A graph of float32 tensors, given as name -> shape."""

    def values(shapes: dict) -> list:
        return [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()]

    initial = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        if isinstance(value, float)
        else helper.make_tensor(name, TensorProto.INT64, [len(value)], value)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def background_onnx(path: Path) -> Path:
    node = helper.make_node
    nodes = [
        node("Sub", ["src", "bgr"], ["away"]),
        node("Abs", ["away"], ["distance"]),
        node("ReduceMax", ["distance", "axis"], ["largest"], keepdims=1),
        node("Mul", ["largest", "gain"], ["scaled"]),
        node("Clip", ["scaled", "zero", "one"], ["pha"]),
        node("Identity", ["src"], ["fgr"]),
    ]
    picture, plane = ["b", 3, "h", "w"], ["b", 1, "h", "w"]
    constants = {"axis": [1], "gain": 3.0, "zero": 0.0, "one": 1.0}
    return save_onnx(
        path, nodes, {"src": picture, "bgr": picture}, {"pha": plane, "fgr": picture}, constants
    )


def video_onnx(path: Path) -> Path:
    node = helper.make_node
    nodes = [
        node("Add", ["r1i", "step"], ["r1o"]),
        node("Shape", ["src"], ["shape"]),
        node("Slice", ["shape", "second", "end"], ["sides"]),
        node("Concat", ["ones", "sides"], ["full"], axis=0),
        node("Expand", ["r1o", "full"], ["pha"]),
        node("Identity", ["src"], ["fgr"]),
        *(node("Identity", [f"r{k}i"], [f"r{k}o"]) for k in (2, 3)),
        node("Mul", ["r4i", "downsample_ratio"], ["r4o"]),
    ]
    picture, free = ["b", 3, "h", "w"], ["b", "c", "y", "x"]
    states = {f"r{k}i": free for k in (1, 2, 3, 4)}
    outputs = {"fgr": picture, "pha": ["b", 1, "h", "w"], **{f"r{k}o": free for k in (1, 2, 3, 4)}}
    constants = {"step": 0.1, "second": [2], "end": [4], "ones": [1, 1]}
    inputs = {"src": picture, **states, "downsample_ratio": [1]}
    return save_onnx(path, nodes, inputs, outputs, constants)


KINDS = ("TorchScript", "ONNX")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {
        ("background", "TorchScript"): save_script(folder / "b.pth", TinyBackground()),
        ("background", "ONNX"): background_onnx(folder / "b.onnx"),
        ("video", "TorchScript"): save_script(folder / "v.torchscript", TinyVideo()),
        ("video", "ONNX"): video_onnx(folder / "v.onnx"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_background_matting_sees_frame_and_plate(
    files: dict[tuple[str, str], Path], kind: str
) -> None:
    frame, plate, _ = scene()
    frame, plate = frame[:-3, :-1], plate[:-3, :-1]  # sides that are not multiples of four
    alpha = BackgroundMattingNetwork(files["background", kind]).of_camera(plate)(frame)
    expected = np.abs(frame / 255 - plate / 255).max(-1) * 3
    np.testing.assert_allclose(alpha, np.clip(expected, 0, 1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_robust_video_remembers_its_own_frames(
    files: dict[tuple[str, str], Path], kind: str
) -> None:
    network = RobustVideoNetwork(files["video", kind])
    first, second = network.of_video(), network.of_video()
    image = np.zeros((30, 46, 3), np.uint8)
    for step in (0.1, 0.2, 0.3):
        np.testing.assert_allclose(first(image), np.full((30, 46), step), atol=1e-6)
    np.testing.assert_allclose(second(image), 0.1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_matted_in_the_order_of_time(
    tmp_path: Path, files: dict[tuple[str, str], Path], kind: str
) -> None:
    """The memory of every camera counts its own frames, and a new sequence starts afresh."""
    images, _ = film(7)
    inputs = write_ingest(tmp_path, images, {})
    path = inputs["ingest"] / "frames.parquet"
    rows = list(read_rows(path, schemas.FRAMES))
    rows = [{**row, "sequence": "A" if row["timestep"] < 4 else "B"} for row in rows]
    write_table(path, schemas.FRAMES, rows)
    file = files["video", kind]
    out = run(inputs, backend="robust_video", weights=str(file), max_area=1.0)
    for row in read_rows(out / "alpha.parquet", schemas.ALPHA):
        seen = row["timestep"] % 4 + 1 if row["sequence"] == "A" else row["timestep"] - 3
        assert np.unique(decode_matte(row["alpha"])).tolist() == [round(25.5 * seen)], row
    summary = read_json(out / "summary.json")
    assert summary["licences"] == {"Robust Video Matting": "GPL-3.0"}
    assert summary["weights"]["file"] == file.name
    assert len(summary["weights"]["sha256"]) == 64


def test_weights_of_ones_own_have_ones_own_licence(
    tmp_path: Path, files: dict[tuple[str, str], Path]
) -> None:
    images, plate = film(1)
    inputs = write_ingest(tmp_path, images, {"a": plate, "b": plate})
    given = {"backend": "background_matting", "weights": str(files["background", "ONNX"])}
    out = run(inputs, **given, weights_licence="in-house")
    summary = read_json(out / "summary.json")
    assert summary["backends"] == {"background_matting": 2}
    assert summary["licences"] == {"BackgroundMattingV2": "in-house"}


def refusals(files: dict[tuple[str, str], Path], tmp: Path) -> list[tuple[Callable, str]]:
    checkpoint, text = tmp / "checkpoint.pth", tmp / "text.onnx"
    torch.save({"weight": torch.zeros(3)}, checkpoint)
    text.write_text("hello")
    b, v = BackgroundMattingNetwork, RobustVideoNetwork
    return [
        (lambda: b(tmp / "none.pth"), r"cannot be read.*none\.pth.*matting\.weights.*MIT"),
        (lambda: b(checkpoint), r"not a TorchScript model.*bare weights"),
        (lambda: v(text), r"neither a TorchScript nor an ONNX model"),
        (lambda: v(files["background", "ONNX"]), r"not Robust Video.*r1i.*has src, bgr"),
        (lambda: b(files["video", "ONNX"]), r"not BackgroundMattingV2.*has src, r1i"),
        (lambda: v(files["background", "TorchScript"]), r"not Robust Video.*has src, bgr"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_wrong_file_is_a_sentence(
    tmp_path: Path, files: dict[tuple[str, str], Path], number: int
) -> None:
    attempt, sentence = refusals(files, tmp_path)[number]
    with pytest.raises(AssetError, match=sentence):
        attempt()


def test_a_network_that_fails_or_gives_no_alpha_is_a_sentence(
    tmp_path: Path, files: dict[tuple[str, str], Path]
) -> None:
    class Coarse(torch.nn.Module):
        def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, Tensor]:
            return src[:, :1, ::2, ::2], src

    class Broken(torch.nn.Module):
        def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, Tensor]:
            return src.reshape(7, -1), bgr

    image = np.zeros((16, 16, 3), np.uint8)
    for module, sentence in ((Coarse(), r"shape \(1, 1, 8, 8\).*16x16"), (Broken(), "not run as")):
        file = save_script(tmp_path / f"{type(module).__name__}.pt", module)
        with pytest.raises(AssetError, match=sentence):
            BackgroundMattingNetwork(file).of_camera(image)(image)


def test_onnx_without_its_runtime(
    files: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch, "onnxruntime")
    with pytest.raises(AssetError, match="pip install onnxruntime"):
        RobustVideoNetwork(files["video", "ONNX"])
    RobustVideoNetwork(files["video", "TorchScript"])


def test_what_the_parameters_lack_is_a_sentence(
    tmp_path: Path, files: dict[tuple[str, str], Path]
) -> None:
    images, plate = film(1)
    weights = str(files["background", "ONNX"])
    for number, (params, sentence) in enumerate(
        (
            ({"backend": "robust_video"}, r"needs a file of weights.*matting\.weights"),
            ({"backend": "background_matting", "weights": weights}, "Camera b has no background"),
            ({"backend": "plate", "weights": weights}, "uses none"),
        )
    ):
        inputs = write_ingest(tmp_path / str(number), images, {"a": plate})
        with pytest.raises(StageError, match=sentence):
            run(inputs, **params)


def test_the_torso_can_be_cut_at_the_neck(tmp_path: Path) -> None:
    images, plate = film(2)
    inputs = write_ingest(tmp_path, images, {"a": plate, "b": plate})
    out = run(inputs, torso=False)
    for row in read_rows(out / "alpha.parquet", schemas.ALPHA):
        alpha = decode_matte(row["alpha"])
        assert (alpha[102:] == 0).all()  # the shoulders begin at 94, see bust()
        truth = bust(shift=row["timestep"])[1][:85]
        assert np.abs(alpha[:85] / 255 - truth).mean() < 0.03


def test_the_neck_is_the_waist_of_the_silhouette() -> None:
    _, alpha = bust()
    row = neck_row(alpha)
    assert row is not None
    assert 88 <= row <= 97  # between chin (90) and shoulders (94)
    cut = cut_at_neck(alpha, row)
    np.testing.assert_array_equal(cut[: row - 2], alpha[: row - 2])
    assert (cut[row + 2 :] == 0).all()
    egg = alpha.copy()
    egg[88:] = 0  # a head without shoulders
    assert neck_row(egg) is None
    assert neck_row(np.zeros((SIDE, SIDE), np.float32)) is None
