"""Tiny captures of every format but NeRSemble v2 and a single video, which tiny_captures writes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tiny_captures import (
    HEIGHT,
    SERIALS,
    WIDTH,
    numbered,
    picture,
    rig,
    write_calibration,
    write_nersemble,
    write_picture,
    write_video,
)

FRAMES = 3
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def matte(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """White on the left, as far as ``index`` says."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : 16 + 4 * index] = 255
    return image


def flame_sequence(path: Path, count: int = FRAMES, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "shape": np.zeros((1, 300)),
        "expression": random.normal(size=(count, 100)),
        "rotation": 0.1 * random.normal(size=(count, 3)),
        "translation": 0.01 * random.normal(size=(count, 3)),
        "jaw": np.zeros((count, 3)),
        "neck": 0.1 * random.normal(size=(count, 3)),
        "eyes": np.zeros((count, 6)),
        "scale": np.ones((1, 1)),
        "frames": np.arange(count),
    }
    np.savez(path, **{name: each for name, each in (parts | changes).items() if each is not None})
    return path


def flame_frame(path: Path, index: int, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {
        "translation": np.array([[0.01 * index, 0, 0]]),
        "rotation": np.array([[0, 0.1 * index, 0]]),
        "neck_pose": np.array([[0.1, 0, 0]]),
        "jaw_pose": np.zeros((1, 3)),
        "eyes_pose": np.zeros((1, 6)),
        "shape": np.zeros(300),
        "expr": np.zeros((1, 100)),
        "static_offset": np.zeros((1, 5143, 3), np.float32),
    }
    np.savez(path, **{name: each for name, each in (parts | changes).items() if each is not None})
    return path


def write_benchmark(folder: Path) -> Path:
    """NeRSemble's benchmark: mattes, tracking, and a calibrated camera whose video is withheld."""
    root = write_nersemble(folder, frames=FRAMES, sequences=["FREE"], backgrounds=False)
    (root / f"sequences/FREE/images/cam_{SERIALS[2]}.mp4").unlink()
    for serial in SERIALS[:2]:
        path = root / f"sequences/FREE/alpha_maps/cam_{serial}.mp4"
        write_video(path, [matte(k) for k in range(FRAMES)])
    flame_sequence(root / "sequences/FREE/tracking/flame2023_tracking_v2.npz")
    return root


def write_v1(folder: Path, person: str = "018") -> Path:
    root = folder / "v1"
    v2 = write_nersemble(folder / "v2", frames=FRAMES, sequences=["FREE"], backgrounds=False)
    calibration = root / f"camera_params/{person}/camera_params.json"
    calibration.parent.mkdir(parents=True, exist_ok=True)
    calibration.write_bytes((v2 / "calibration/camera_params.json").read_bytes())
    for k, serial in enumerate(SERIALS):
        video = root / f"sequence_FREE_part-{k % 2 + 1}/{person}/FREE/cam_{serial}.mp4"
        write_video(video, [numbered(i) for i in range(FRAMES)])
        plate = root / f"sequence_BACKGROUND_part-1/{person}/BACKGROUND/image_{serial}.jpg"
        write_picture(plate, picture(k))
        affine = np.eye(4)
        affine[0, 3] = 0.1 * k
        path = root / f"color_correction/{person}/{serial}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, affine)
    return root


def rig_json() -> dict[str, Any]:
    return {
        "fps": 30,
        "cameras": {
            each.name: {
                "K": each.K.tolist(),
                "w2c": each.w2c.tolist(),
                "width": WIDTH,
                "height": HEIGHT,
                "distortion": [0.1, -0.02],
            }
            for each in rig()
        },
    }


def write_rig(folder: Path, videos: bool = False) -> Path:
    root = folder / "rig"
    root.mkdir(parents=True)
    (root / "cameras.json").write_text(json.dumps(rig_json()))
    for k, serial in enumerate(SERIALS):
        images = [numbered(i) for i in range(FRAMES)]
        if videos:
            for sequence in ("smile", "talk"):
                write_video(root / f"videos/{sequence}/{serial}.mp4", images)
        for i in range(FRAMES) if not videos else ():
            write_picture(root / f"images/{serial}/frame{i}.png", images[i])
            write_picture(root / f"masks/{serial}/frame{i}.png", matte(i))
        write_picture(root / f"backgrounds/{serial}.png", picture(k))
    return root


def transforms(timed: bool = True, camera_ids: bool = True) -> dict[str, Any]:
    frames = []
    for i in range(FRAMES if timed else 1):
        for k, camera in enumerate(rig()):
            entry: dict[str, Any] = {
                "file_path": f"images/{i:05d}_{k:02d}.png",
                "transform_matrix": (np.linalg.inv(camera.w2c) @ OPENGL).tolist(),
                "fl_x": 60.0, "fl_y": 60.0, "cx": WIDTH / 2, "cy": HEIGHT / 2,
                "w": WIDTH, "h": HEIGHT,
            }  # fmt: skip
            if timed:
                entry |= {"timestep_index": i, "timestep_id": f"{i:06d}", "camera_index": k}
                entry |= {"fg_mask_path": f"fg_masks/{i:05d}_{k:02d}.png"}
                entry |= {"flame_param_path": f"flame_param/{i:05d}.npz"}
                entry |= {"camera_id": camera.name} if camera_ids else {}
            frames.append(entry)
    return {"frames": frames}


def write_transforms(folder: Path, timed: bool = True, name: str = "vhap") -> Path:
    root = folder / name
    root.mkdir(parents=True)
    content = transforms(timed)
    for entry in content["frames"]:
        index = entry.get("timestep_index", 0)
        write_picture(root / entry["file_path"], numbered(index))
        if timed:
            write_picture(root / entry["fg_mask_path"], matte(index))
            flame_frame(root / entry["flame_param_path"], index)
    (root / "transforms.json").write_text(json.dumps(content))
    return root


def quaternion(camera: Any) -> list[float]:
    x, y, z, w = Rotation.from_matrix(camera.w2c[:3, :3]).as_quat().tolist()
    return [w, x, y, z]


def write_colmap(folder: Path, binary: bool, frames: int = 1) -> Path:
    """One camera of COLMAP's for all; with ``frames`` > 1 in a folder per camera. Its world is 7
    times as large as ours."""
    root = folder / "colmap"
    model = root / "sparse/0"
    model.mkdir(parents=True)
    shots = []
    for camera in rig():
        for i in range(frames):
            name = f"{camera.name}/{i:04d}.png" if frames > 1 else f"{camera.name}.png"
            write_picture(root / "images" / name, numbered(i))
            shots.append((name, quaternion(camera), (7 * camera.w2c[:3, 3]).tolist()))
    values = [60.0, WIDTH / 2, HEIGHT / 2, 0.05]
    if binary:
        data = struct.pack("<Q", 1) + struct.pack("<iiQQ4d", 1, 2, WIDTH, HEIGHT, *values)
        (model / "cameras.bin").write_bytes(data)
        data = struct.pack("<Q", len(shots))
        for k, (name, turn, place) in enumerate(shots):
            data += struct.pack("<i7di", k + 1, *turn, *place, 1) + name.encode() + b"\0"
            data += struct.pack("<Q", 2) + struct.pack("<ddq", 1.0, 2.0, -1) * 2
        (model / "images.bin").write_bytes(data)
        return root
    lens = f"# Camera list\n1 SIMPLE_RADIAL {WIDTH} {HEIGHT} {' '.join(map(str, values))}\n"
    (model / "cameras.txt").write_text(lens)
    lines = ["# Image list", "# with two lines of data per image"]
    for k, (name, turn, place) in enumerate(shots):
        lines += [f"{k + 1} {' '.join(map(repr, [*turn, *place]))} 1 {name}"]
        lines += ["1.0 2.0 -1" if k % 2 else ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    return root


def write_reference(folder: Path) -> Path:
    root = folder / "reference"
    for i in range(FRAMES):
        for k, camera in enumerate(rig()):
            base = root / f"images/{i:04d}"
            write_picture(base / f"image_{camera.name}.jpg", numbered(i))
            write_picture(base / f"image_lowres_{camera.name}.jpg", numbered(i, 24, 32))
            write_picture(base / f"mask_{camera.name}.jpg", matte(i))
            visible = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
            visible[:8] = 0
            write_picture(base / f"visible_{camera.name}.jpg", visible)
            path = root / f"cameras/{i:04d}/camera_{camera.name}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, extrinsic=camera.w2c[:3], intrinsic=camera.K)
            write_picture(root / f"background/image_{camera.name}.jpg", picture(k))
        path = root / f"params/{i:04d}/params.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        pose = np.array([0.0, 0.1 * i, 0, 0, 0, 0.01])
        np.savez(path, pose=pose[None], scale=np.ones((1, 1)), exp_coeff=np.zeros((1, 64)))
    return root


def write_square_calibration(root: Path, size: int) -> None:
    """As the monocular benchmark has it: a square crop, and no size in the file."""
    K = [[60.0, 0, size / 2], [0, 60.0, size / 2], [0, 0, 1]]
    poses = {each.name: each.w2c.tolist() for each in rig()}
    write_calibration(root, {"world_2_cam": poses, "intrinsics": K})
