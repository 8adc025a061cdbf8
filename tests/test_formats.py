"""Every format of captures: what is read, how it is converted, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_trees as trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_captures import (
    HEIGHT,
    SERIALS,
    WIDTH,
    number_of,
    numbered,
    picture,
    rig,
    write_nersemble,
    write_picture,
    write_video,
)

from gha_core.capture import (
    Capture,
    Options,
    adapters,
    colmap,
    detect_format,
    generic,
    open_capture,
)
from gha_core.capture.describe import describe
from gha_core.capture.nersemble_v1 import affine_correction
from gha_core.capture.rig import _Reader
from gha_core.capture.streams import open_stream
from gha_core.capture.tracked import read_flame_sequence, read_npz
from gha_core.errors import CaptureError

A, B, C = SERIALS
Write = Callable[[Path], Path]

FORMATS: dict[str, tuple[str, Write]] = {
    "v1": ("nersemble-v1", trees.write_v1),
    "benchmark": ("nersemble", trees.write_benchmark),
    "rig of pictures": ("rig", trees.write_rig),
    "rig of videos": ("rig", lambda folder: trees.write_rig(folder, videos=True)),
    "vhap": ("transforms", trees.write_transforms),
    "nerfstudio": ("transforms", lambda folder: trees.write_transforms(folder, timed=False)),
    "colmap text": ("colmap", lambda folder: trees.write_colmap(folder, binary=False)),
    "colmap binary": ("colmap", lambda folder: trees.write_colmap(folder, binary=True)),
    "reference": ("reference", trees.write_reference),
}


def opened(folder: Path, **options: Any) -> Capture:
    return open_capture(folder, **options)


def numbers(capture: Capture, sequence: str) -> list[tuple[int, set[int]]]:
    """(timestep, the numbers that its pictures show)."""
    timesteps = next(each.timesteps for each in capture.sequences if each.name == sequence)
    return [
        (t.index, {number_of(image) for image in t.images.values() if image is not None})
        for t in capture.frames(sequence, timesteps)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_detected_and_its_rig_is_read(tmp_path: Path, name: str) -> None:
    expected, write = FORMATS[name]
    root = write(tmp_path)
    assert detect_format(root) == expected
    capture = opened(root)
    assert capture.format == expected
    for camera, truth in zip(capture.cameras, rig(), strict=False):
        assert (camera.width, camera.height) == (WIDTH, HEIGHT)
        assert np.allclose(camera.K, truth.K)
        # Up to the scale, which is arbitrary for COLMAP and plain nerfstudio.
        assert np.allclose(camera.w2c[:3, :3], truth.w2c[:3, :3], atol=1e-9)
        ratio = camera.w2c[2, 3] / truth.w2c[2, 3]
        assert np.allclose(truth.w2c[:3, 3] * ratio, camera.w2c[:3, 3], atol=1e-9)
        if expected not in ("colmap",) and name != "nerfstudio":
            assert ratio == pytest.approx(1)
    for sequence in capture.sequences:
        read = numbers(capture, sequence.name)
        assert read == [(index, {index}) for index in sequence.timesteps]
    text = "\n".join(describe(capture))
    for part in (f"{len(capture.cameras)} camera", f"{WIDTH}x{HEIGHT}", "calibrated", "sequence"):
        assert part in text


def test_the_benchmark_brings_mattes_and_tracking_and_withholds_a_camera(tmp_path: Path) -> None:
    capture = opened(trees.write_benchmark(tmp_path))
    assert [each.name for each in capture.cameras] == [A, B]
    assert any(C in note and "left out" in note for note in capture.notes)
    assert capture.matted == {A, B}
    for timestep in capture.frames("FREE", range(trees.FRAMES)):
        for mask in timestep.mattes.values():
            assert mask is not None
            assert abs((mask > 127).mean() - (16 + 4 * timestep.index) / WIDTH) < 0.03
    assert capture.tracking is not None
    assert sorted(capture.tracking.frames) == [("FREE", k) for k in range(trees.FRAMES)]
    assert "tracking: FLAME of 3 timesteps" in "\n".join(describe(capture))


def test_square_crops_of_the_benchmark_keep_their_intrinsics(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path, frames=1, sequences=["FREE"], backgrounds=False)
    trees.write_square_calibration(root, 64)
    for path in root.glob("sequences/*/images/*.mp4"):
        write_video(path, [numbered(0, 64, 64)])
    capture = opened(root)
    assert np.allclose(capture.cameras[0].K[:2, 2], 32)
    assert any("names no size" in note for note in capture.notes)


def test_nersemble_v1_is_one_person_and_corrects_colours(tmp_path: Path) -> None:
    root = trees.write_v1(tmp_path)
    capture = opened(root)
    assert capture.background(B) is not None
    plain, shifted = (
        np.full((2, 2, 3), 100, np.uint8),
        capture.correct(B, np.full((2, 2, 3), 100, np.uint8)),
    )
    assert (shifted - plain.astype(int)).tolist() == [[[26, 0, 0]] * 2] * 2  # 0.1 of 255, rounded
    shutil.copytree(root / "camera_params/018", root / "camera_params/019")
    assert detect_format(root) == "nersemble-v1"
    with pytest.raises(CaptureError, match=r"holds 2 participants \(018, 019\).*camera_params/018"):
        opened(root)
    link = tmp_path / "anna"
    link.symlink_to(root / "camera_params/018")
    assert detect_format(link) == "nersemble-v1"
    assert len(opened(link).cameras) == 3
    assert not any(opened(link, colour_correction=False).correct(B, plain)[..., 0].ravel() != 100)


@given(st.lists(st.floats(-1.5, 1.5), min_size=12, max_size=12), st.integers(0, 255))
def test_affine_correction_is_the_formula(values: list[float], level: int) -> None:
    matrix = np.array(values).reshape(3, 4)
    image = np.array([[[level, 255 - level, 37]]], np.uint8)
    exact = np.clip(image[0, 0] / 255 @ matrix[:, :3] + matrix[:, 3], 0, 1) * 255
    assert np.abs(affine_correction(matrix, image)[0, 0] - exact).max() <= 0.51


def test_a_rig_of_pictures_has_mattes_plates_distortion_and_a_rate(tmp_path: Path) -> None:
    root = trees.write_rig(tmp_path)
    capture = opened(root)
    assert capture.matted == set(SERIALS)
    assert np.array_equal(capture.background(C), picture(2))
    assert capture.cameras[0].distortion.tolist() == [0.1, -0.02, 0, 0, 0]
    (sequence,) = capture.sequences
    assert (sequence.name, sequence.rate, list(sequence.timesteps)) == ("sequence", 30, [0, 1, 2])
    # Numbers, not letters, order the frames, and one that is absent leaves a gap.
    write_picture(root / f"images/{A}/frame10.png", numbered(10))
    capture = opened(root)
    assert numbers(capture, "sequence")[-1] == (10, {10})
    assert any("lacks 2 of 12 pictures" in note for note in capture.notes)


def test_a_rig_of_videos_has_sequences(tmp_path: Path) -> None:
    capture = opened(trees.write_rig(tmp_path, videos=True), sequences=["sm*"])
    assert [each.name for each in capture.sequences] == ["smile"]


def test_the_schema_accepts_what_is_documented_and_is_itself_valid() -> None:
    schema = json.loads(generic.SCHEMA.read_text())
    generic.jsonschema.Draft202012Validator.check_schema(schema)
    generic.check(trees.rig_json(), Path("cameras.json"))


def test_vhap_brings_masks_and_flame(tmp_path: Path) -> None:
    capture = opened(trees.write_transforms(tmp_path))
    assert capture.matted == set(SERIALS)
    assert capture.tracking is not None
    face = capture.tracking.frames["sequence", 2]
    assert face.root.tolist() == [0, 0.2, 0]
    assert face.translation.tolist() == [0.02, 0, 0]
    assert {"expr", "jaw_pose", "eyes_pose"} <= face.coefficients.keys()


def test_a_union_reads_its_sources_as_sequences(tmp_path: Path) -> None:
    for name in ("smile", "talk"):
        trees.write_transforms(tmp_path, name=name)
    union = tmp_path / "union"
    union.mkdir()
    for part, source in (("train", "smile"), ("test", "talk")):
        content = trees.transforms()
        for entry in content["frames"]:
            for key in ("file_path", "fg_mask_path", "flame_param_path"):
                entry[key] = f"../{source}/{entry[key]}"
        if part == "train":
            content["frames"] = [e for e in content["frames"] if e["camera_id"] != C]
        (union / f"transforms_{part}.json").write_text(json.dumps(content))
    capture = opened(union, cameras=[A, B])
    assert [each.name for each in capture.sequences] == ["smile", "talk"]
    assert numbers(capture, "talk") == [(k, {k}) for k in range(trees.FRAMES)]
    assert any(f"--test-camera {C}" in note for note in capture.notes)


def test_plain_nerfstudio_is_one_moment_of_many_cameras(tmp_path: Path) -> None:
    capture = opened(trees.write_transforms(tmp_path, timed=False))
    assert [each.name for each in capture.cameras] == ["00000_00", "00000_01", "00000_02"]
    assert [list(each.timesteps) for each in capture.sequences] == [[0]]
    assert any("one moment" in note for note in capture.notes)


@pytest.mark.parametrize("binary", [False, True])
def test_a_colmap_rig_of_folders_has_timesteps(tmp_path: Path, binary: bool) -> None:
    capture = opened(trees.write_colmap(tmp_path, binary, frames=3))
    assert [each.name for each in capture.cameras] == list(SERIALS)
    assert numbers(capture, "sequence") == [(k, {k}) for k in range(3)]
    assert capture.cameras[0].distortion.tolist() == [0.05, 0, 0, 0, 0]
    distance = np.median([np.linalg.norm(each.centre) for each in capture.cameras])
    assert distance == pytest.approx(1, abs=0.02)
    assert any("scale is arbitrary" in note for note in capture.notes)


def test_colmap_can_calibrate_what_videos_show(tmp_path: Path) -> None:
    root = trees.write_colmap(tmp_path, True)
    for serial in (A, B):
        write_video(root / f"videos/{serial}.mp4", [numbered(k) for k in range(4)])
    capture = opened(root)
    assert [each.name for each in capture.cameras] == [A, B]
    assert numbers(capture, "sequence") == [(k, {k}) for k in range(4)]


def test_the_reference_layout_brings_mattes_within_what_is_visible(tmp_path: Path) -> None:
    capture = opened(trees.write_reference(tmp_path))
    first = next(capture.frames("sequence", [1]))
    mask = first.mattes[A]
    assert mask is not None
    assert mask[:7].max() < 40
    assert mask[12:, :16].min() > 200
    assert capture.tracking is not None
    assert capture.tracking.model == "BFM"
    assert capture.background(A) is not None


# detection ---------------------------------------------------------------------------------------


def test_two_formats_at_once_are_a_question(tmp_path: Path) -> None:
    root = trees.write_colmap(tmp_path, True)
    (root / "transforms.json").write_text("{}")
    with pytest.raises(CaptureError, match=r"several formats: transforms.*colmap.*--format"):
        detect_format(root)
    assert opened(root, format="colmap").format == "colmap"


class FilmReel:
    """A format of somebody else's package."""

    NAME, WHAT = "reel", "a reel"

    @staticmethod
    def detect(path: Path) -> bool:
        return (path / "reel.txt").is_file()

    @staticmethod
    def read(path: Path, options: Options) -> Capture:
        return open_capture(path / "film.mp4", "monocular", cameras=options.cameras)


class Thief(FilmReel):
    NAME = "rig"


def register(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("reel", f"test_formats:{value}", "gha.captures")
    monkeypatch.setattr("gha_core.capture.entry_points", lambda group: EntryPoints([point]))


def test_other_packages_register_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an installed distribution's metadata, as pip writes it."""
    site = tmp_path / "site"
    info = site / "filmreel-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: filmreel\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gha.captures]\nreel = test_formats:FilmReel\n")
    monkeypatch.syspath_prepend(str(site))
    folder = tmp_path / "capture"
    write_video(folder / "film.mp4", [numbered(0)])
    (folder / "reel.txt").write_text("")
    assert detect_format(folder) == "reel"
    assert len(opened(folder).cameras) == 1


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("Nothing", "cannot be loaded"),
        ("numbers", "is no adapter"),
        ("Thief", "takes the name 'rig'"),
    ],
)
def test_what_other_packages_register_is_checked(
    monkeypatch: pytest.MonkeyPatch, value: str, part: str
) -> None:
    register(monkeypatch, value)
    with pytest.raises(CaptureError, match=part):
        adapters()


# bad input ---------------------------------------------------------------------------------------


def edit(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / file
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def first(key: str, value: Any) -> Callable[[Path], None]:
    """Change one entry of transforms.json."""
    return edit("transforms.json", lambda content: content["frames"][0].update({key: value}))


def camera(key: str, value: Any) -> Callable[[Path], None]:
    return edit("cameras.json", lambda content: content["cameras"][B].update({key: value}))


def nan_intrinsics(root: Path) -> None:
    K = np.eye(3)
    K[0, 0] = np.nan
    np.savez(root / f"cameras/0000/camera_{A}.npz", extrinsic=np.eye(4)[:3], intrinsic=K)


def pickled(root: Path) -> None:
    np.savez(root / "params/0000/params.npz", pose=np.array([{"a": 1}], object))


def moved_mask(root: Path) -> None:
    shutil.copy(root / f"masks/{A}/frame0.png", root / f"masks/{A}/other0.png")


BROKEN: dict[str, tuple[str, Callable[[Path], Any], list[str]]] = {
    "v1 without calibration": (
        "v1", lambda root: shutil.rmtree(root / "camera_params/018"), ["camera_params"],
    ),
    "v1 camera without video": (
        "v1", lambda root: next(root.glob(f"sequence_FREE*/018/FREE/cam_{B}.mp4")).unlink(),
        [f"Camera {B}", "sequence FREE", f"cam_{B}.mp4 does not exist"],
    ),
    "v1 unreadable video": (
        "v1", lambda r: next(r.glob(f"sequence_FREE*/018/FREE/cam_{B}.mp4")).write_text("no"),
        [f"cam_{B}.mp4 cannot be read"],
    ),
    "v1 colour of one camera": (
        "v1", lambda root: (root / f"color_correction/018/{B}.npy").unlink(),
        [f"{B}.npy is missing", "ingest.colour_correction"],
    ),
    "v1 colour is pickled": (
        "v1", lambda r: (r / f"color_correction/018/{B}.npy").write_bytes(pickle.dumps([1])),
        [f"{B}.npy", "not a readable npy"],
    ),
    "v1 colour has a wrong shape": (
        "v1", lambda root: np.save(root / f"color_correction/018/{B}.npy", np.eye(2)), ["2x2"],
    ),
    "mattes cut short": (
        "benchmark",
        lambda r: write_video(r / f"sequences/FREE/alpha_maps/cam_{A}.mp4", [trees.matte(0)]),
        [f"cam_{A}.mp4 have 1 frames", "have 3"],
    ),
    "mattes of another shape": (
        "benchmark",
        lambda r: write_video(
            r / f"sequences/FREE/alpha_maps/cam_{A}.mp4", [trees.matte(0, 64, 48)] * 3
        ),
        [f"Camera {A}", "the matte", "64x48"],
    ),
    "tracking with NaN": (
        "benchmark",
        lambda r: trees.flame_sequence(
            r / "sequences/FREE/tracking/flame2023_tracking_v2.npz",
            translation=np.full((3, 3), np.nan),
        ),
        ["flame2023_tracking_v2.npz", "'translation' contains NaN"],
    ),
    "tracking of wrong counts": (
        "benchmark",
        lambda r: trees.flame_sequence(
            r / "sequences/FREE/tracking/flame2023_tracking_v2.npz", translation=np.zeros((2, 3))
        ),
        ["'translation' has shape 2x3", "3x3"],
    ),
    "rig without K": (
        "rig of pictures", edit("cameras.json", lambda c: c["cameras"][B].pop("K")),
        [f"cameras.{B}", "'K' is a required property"],
    ),
    "rig with NaN": (
        "rig of pictures", camera("K", [[float("nan"), 0, 1], [0, 60, 1], [0, 0, 1]]),
        [f"Camera {B}", "NaN"],
    ),
    "rig with NaN in the lens": (
        "rig of pictures", camera("distortion", [float("nan")]), [f"Camera {B}", "NaN"],
    ),
    "rig with camera-to-world in millimetres and a mirror": (
        "rig of pictures", camera("w2c", np.diag([-1, 1, 1, 1.0]).tolist()),
        [f"Camera {B}", "mirrors"],
    ),
    "rig with an unknown key": (
        "rig of pictures", camera("focal", 3), [f"cameras.{B}", "'focal' was unexpected"],
    ),
    "rig with a name that is a path": (
        "rig of pictures",
        edit("cameras.json", lambda c: c["cameras"].update({"../x": c["cameras"][B]})),
        ["'../x'", "does not match"],
    ),
    "rig camera without frames": (
        "rig of pictures",
        lambda root: [each.unlink() for each in (root / f"images/{B}").iterdir()],
        [f"images/{B} holds no pictures of camera {B}"],
    ),
    "rig camera missing": (
        "rig of pictures", edit("cameras.json", lambda c: c["cameras"].pop(B)),
        [f"of camera {B}", "does not calibrate"],
    ),
    "rig with a frame twice": (
        "rig of pictures",
        lambda root: write_picture(root / f"images/{B}/frame01.png", numbered(1)),
        ["frame01.png", "frame1.png", "same frame number 1"],
    ),
    "rig with a mask twice": (
        "rig of pictures", moved_mask, ["frame0.png", "other0.png", "same frame number 0"],
    ),
    "rig with unnumbered frames": (
        "rig of pictures",
        lambda root: write_picture(root / f"images/{B}/smile.png", numbered(1)),
        ["smile.png has no frame number"],
    ),
    "rig with an unreadable picture": (
        "rig of pictures",
        lambda root: (root / f"images/{B}/frame0.png").write_bytes(b"PNG?"),
        [f"images/{B}/frame0.png cannot be read"],
    ),
    "rig with two videos of a camera": (
        "rig of videos",
        lambda root: shutil.copy(root / f"videos/talk/{B}.mp4", root / f"videos/talk/{B}.mov"),
        [f"{B}.mov", f"{B}.mp4", "both of camera"],
    ),
    "rig with unequal videos": (
        "rig of videos",
        lambda root: write_video(root / f"videos/talk/{B}.mp4", [numbered(0)]),
        ["sequence talk", "differ in length"],
    ),
    "transforms lead out": (
        "vhap", first("file_path", "../../secret.png"), ["frame 0", "lies outside"],
    ),
    "transforms lead beside": (
        "vhap", first("file_path", "../other/secret.png"), ["lies outside", "other"],
    ),
    "transforms are absolute": (
        "vhap", first("fg_mask_path", "/etc/passwd"), ["'/etc/passwd' lies outside"],
    ),
    "transforms lead out late": (
        "vhap", first("flame_param_path", "a/../../../x.npz"), ["lies outside"],
    ),
    "transforms with NaN": (
        "vhap", first("fl_x", float("nan")), ["frame 0", "fl_x is nan"],
    ),
    "transforms with a singular matrix": (
        "vhap", first("transform_matrix", np.zeros((4, 4)).tolist()), ["frame 0", "singular"],
    ),
    "transforms of a moving camera": (
        "vhap", first("cx", 3.0), ["another calibration", "must stand still"],
    ),
    "transforms with a picture twice": (
        "vhap", edit("transforms.json", lambda c: c["frames"].append(
            {**c["frames"][0], "file_path": "images/other.png"}
        )), [f"both of camera {A} at timestep 0"],
    ),
    "transforms without frames": (
        "vhap", edit("transforms.json", lambda c: c.pop("frames")), ["has no 'frames'"],
    ),
    "transforms with fisheye": (
        "vhap", first("camera_model", "OPENCV_FISHEYE"), ["FISHEYE is not read"],
    ),
    "transforms with a timestep that is text": (
        "vhap", first("timestep_index", "zero"), ["timestep_index 'zero'"],
    ),
    "transforms with a picture that is absent": (
        "nerfstudio", lambda root: (root / "images/00000_01.png").unlink(), ["00000_01.png"],
    ),
    "flame is pickled": (
        "vhap", lambda root: (root / "flame_param/00001.npz").write_bytes(pickle.dumps({"a": 1})),
        ["flame_param/00001.npz is not a readable npz"],
    ),
    "flame with a wrong shape": (
        "vhap",
        lambda r: trees.flame_frame(r / "flame_param/00001.npz", 1, rotation=np.zeros((1, 4))),
        ["00001.npz", "'rotation' has shape 1x4"],
    ),
    "colmap cut short": (
        "colmap binary",
        lambda r: (r / "sparse/0/images.bin").write_bytes(
            (r / "sparse/0/images.bin").read_bytes()[:-20]
        ),
        ["images.bin is truncated"],
    ),
    "colmap announces too much": (
        "colmap binary",
        lambda r: (r / "sparse/0/images.bin").write_bytes(struct.pack("<Q", 1 << 60)),
        ["images.bin is truncated or damaged"],
    ),
    "colmap with fisheye": (
        "colmap text",
        lambda r: (r / "sparse/0/cameras.txt").write_text("1 OPENCV_FISHEYE 48 64 1 1 1 1 0 0 0 0"),
        ["OPENCV_FISHEYE is not read"],
    ),
    "colmap with NaN": (
        "colmap text",
        lambda r: (r / "sparse/0/cameras.txt").write_text("1 PINHOLE 48 64 nan 60 24 32"),
        ["cameras.txt, line 1", "NaN"],
    ),
    "colmap without the camera": (
        "colmap text",
        lambda r: (r / "sparse/0/cameras.txt").write_text("2 PINHOLE 48 64 60 60 24 32"),
        ["is of camera 1", "does not have"],
    ),
    "colmap leads out": (
        "colmap text",
        lambda r: (r / "sparse/0/images.txt").write_text("1 1 0 0 0 0 0 1 1 ../../x.png\n\n"),
        ["'../../x.png' lies outside"],
    ),
    "colmap names twice": (
        "colmap text",
        lambda r: (r / "sparse/0/images.txt").write_text("1 1 0 0 0 0 0 1 1 a.png\n\n" * 2),
        ["'a.png' twice"],
    ),
    "colmap with a line that is cut": (
        "colmap text",
        lambda r: (r / "sparse/0/images.txt").write_text("1 1 0 0 0 0\n\n"),
        ["images.txt, line 1", "expected IMAGE_ID"],
    ),
    "reference without a camera": (
        "reference", lambda root: (root / f"cameras/0001/camera_{B}.npz").unlink(),
        [f"camera_{B}.npz does not exist"],
    ),
    "reference with NaN": ("reference", nan_intrinsics, [f"camera {A}", "NaN"]),
    "reference camera that moves": (
        "reference",
        lambda r: np.savez(
            r / f"cameras/0001/camera_{B}.npz", extrinsic=np.eye(4)[:3], intrinsic=np.eye(3)
        ),
        [f"camera {B} moves"],
    ),
    "reference with pickled parameters": ("reference", pickled, ["params.npz is not a readable"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_capture_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    written, breaks, parts = BROKEN[name]
    format, write = FORMATS[written]
    root = write(tmp_path)
    breaks(root)
    with pytest.raises(CaptureError) as caught:
        open_capture(root, format)
    sentence = str(caught.value)
    for part in parts:
        assert part in sentence
    assert sentence.endswith(".")


# parsers -----------------------------------------------------------------------------------------


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What was read, or None if it was refused with a sentence; anything else is a failure."""
    try:
        return read()
    except CaptureError as error:
        sentence = str(error)
    assert sentence.endswith(".")
    return None


SOME = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def binary_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.write_colmap(tmp_path_factory.mktemp("model"), True) / "sparse/0"


@SOME
@given(data=st.data())
def test_a_damaged_binary_model_is_read_or_refused(
    tmp_path: Path, binary_model: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["cameras.bin", "images.bin"]))
    shutil.copytree(binary_model, tmp_path, dirs_exist_ok=True)
    content = bytearray((binary_model / name).read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = value
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    model = read_or_refused(lambda: colmap.read_model(tmp_path))
    assert model is None or all(np.isfinite(shot.w2c).all() for shot in model[1])


@SOME
@given(cameras=st.text(max_size=80), images=st.text("0123456789.- #\nabc", max_size=120))
def test_any_text_model_is_read_or_refused(tmp_path: Path, cameras: str, images: str) -> None:
    (tmp_path / "cameras.txt").write_text(cameras, encoding="utf-8", errors="replace")
    (tmp_path / "images.txt").write_text(images)
    with pytest.raises(CaptureError):
        colmap.read_model(tmp_path)


def test_colmaps_lenses_are_opencvs(tmp_path: Path) -> None:
    lines = ["1 SIMPLE_PINHOLE 48 64 60 24 32", "2 PINHOLE 48 64 60 61 24 32",
             "3 RADIAL 48 64 60 24 32 .1 .2", "4 OPENCV 48 64 60 61 24 32 .1 .2 .3 .4",
             "5 FULL_OPENCV 48 64 60 61 24 32 .1 .2 .3 .4 .5 0 0 0"]  # fmt: skip
    (tmp_path / "cameras.txt").write_text("\n".join(lines))
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 1 1 a.png\n")
    lenses, _ = colmap.read_model(tmp_path)
    assert [lens.K[1, 1] for lens in lenses.values()] == [60, 61, 60, 61, 61]
    assert lenses[3].distortion.tolist() == [0.1, 0.2, 0, 0, 0]
    assert lenses[4].distortion.tolist() == [0.1, 0.2, 0.3, 0.4, 0]
    assert lenses[5].distortion.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["file_path", "transform_matrix", "fl_x", "cx", "w", "h", "timestep_index", "camera_id",
        "fg_mask_path", "flame_param_path", "camera_model", "k1"]  # fmt: skip


@SOME
@given(key=st.sampled_from(KEYS), value=json_values)
def test_any_entry_of_transforms_is_read_or_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    root = tmp_path / "vhap"
    if not root.exists():
        trees.write_transforms(tmp_path)
    content = trees.transforms()
    content["frames"] = content["frames"][:3]
    content["frames"][1][key] = value
    (root / "transforms.json").write_text(json.dumps(content))
    capture = read_or_refused(lambda: opened(root))
    assert capture is None or capture.cameras


@SOME
@given(key=st.sampled_from(["K", "w2c", "width", "height", "distortion"]), value=json_values)
def test_any_camera_of_a_rig_is_read_or_refused(tmp_path: Path, key: str, value: object) -> None:
    root = tmp_path / "rig"
    if not root.exists():
        trees.write_rig(tmp_path)
    content = trees.rig_json()
    content["cameras"][B][key] = value
    (root / "cameras.json").write_text(json.dumps(content))
    capture = read_or_refused(lambda: opened(root))
    assert capture is None or len(capture.cameras) == 3


@SOME
@given(st.binary(max_size=200))
def test_any_bytes_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CaptureError):
        read_npz(tmp_path / "a.npz")


def test_flame_frames_are_keyed_by_their_numbers(tmp_path: Path) -> None:
    path = trees.flame_sequence(tmp_path / "a.npz", frames=np.array([4, 7, 9]))
    assert list(read_flame_sequence(path, "FREE").frames) == [("FREE", t) for t in (4, 7, 9)]
    path = trees.flame_sequence(tmp_path / "a.npz", frames=np.array([4, 4, 9]))
    with pytest.raises(CaptureError, match="each of the 3 timesteps once"):
        read_flame_sequence(path, "FREE")


def test_no_more_than_a_few_timesteps_are_decoded_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the capture: what is decoded follows what is asked for."""
    root = trees.write_rig(tmp_path)
    for path in list(root.glob("images/*/*")) + list(root.glob("masks/*/*")):
        path.unlink()
    for serial in SERIALS:
        for k in range(12):
            write_picture(root / f"images/{serial}/{k}.png", numbered(k))
    shutil.rmtree(root / "masks")
    capture = opened(root)
    decoded: list[Path] = []

    def read(path: Path) -> Any:
        decoded.append(path)
        return numbered(0)

    monkeypatch.setattr("gha_core.capture.streams.read_picture", read)
    for asked, timestep in enumerate(capture.frames("sequence", range(12))):
        assert timestep.index == asked
        assert len(decoded) <= len(SERIALS) * (asked + 2)


def test_pictures_asked_for_out_of_turn_are_the_right_ones(tmp_path: Path) -> None:
    """Threads start in order but need not go on in order."""
    path = trees.write_rig(tmp_path, videos=True) / f"videos/talk/{A}.mp4"
    reader = _Reader(open_stream(path), range(3), 1)
    found = {timestep: reader.at(timestep) for timestep in (1, 0, 2)}
    assert {t: number_of(each[0]) for t, each in found.items() if each} == {0: 0, 1: 1, 2: 2}
    assert reader.at(3) is None
