"""From OpenCV's calibration files to a capture that gha reads.

    python docs/examples/01_rig_from_opencv.py CALIBRATION VIDEOS RIG
    gha add anna RIG

CALIBRATION has one file per camera, front.yml and so on, as cv2.FileStorage writes them:
camera_matrix, distortion_coefficients, rvec and tvec (world to camera, metres), image_width,
image_height. VIDEOS has front.mp4 and so on; they start together.
"""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np


def camera(file: Path) -> dict[str, object]:
    """One entry of cameras.json; docs/captures.md says what the fields mean."""
    stored = cv2.FileStorage(str(file), cv2.FILE_STORAGE_READ)
    K = stored.getNode("camera_matrix").mat()
    # OpenCV's first pixel has its centre at (0, 0), gha's at (0.5, 0.5).
    K[:2, 2] += 0.5
    w2c = np.eye(4)
    w2c[:3, :3] = cv2.Rodrigues(stored.getNode("rvec").mat())[0]
    w2c[:3, 3] = stored.getNode("tvec").mat().ravel()
    return {
        "K": K.tolist(),
        "w2c": w2c.tolist(),
        "width": int(stored.getNode("image_width").real()),
        "height": int(stored.getNode("image_height").real()),
        "distortion": stored.getNode("distortion_coefficients").mat().ravel()[:5].tolist(),
    }


def main(calibration: Path, videos: Path, rig: Path) -> None:
    cameras = {file.stem: camera(file) for file in sorted(calibration.glob("*.yml"))}
    (rig / "videos").mkdir(parents=True)
    for name in cameras:
        shutil.copy(videos / f"{name}.mp4", rig / "videos")
    (rig / "cameras.json").write_text(json.dumps({"cameras": cameras}, indent=1))
    print(f"{rig}: {len(cameras)} cameras. Next: gha add NAME {rig}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
