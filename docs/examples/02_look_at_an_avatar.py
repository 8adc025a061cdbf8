"""Load an avatar, open its mouth, walk around it.

    python docs/examples/02_look_at_an_avatar.py data/subjects/demo/avatar around.mp4

Neither DVC nor Prefect has a part in it: avatar.safetensors and avatar.json are all that is needed.
"""

import sys
from pathlib import Path

import numpy as np

from gha_core.artifacts.videos import write_video
from gha_core.avatar import Avatar
from gha_core.cameras import Camera, look_at
from gha_core.pose import HeadPose

SIDE, FRAMES = 256, 24
UP = np.array([0.0, 1.0, 0.0])


def main(folder: Path, video: Path) -> None:
    avatar = Avatar.load(folder)
    pose = HeadPose(np.zeros(3), np.zeros(3), scale=0.24)  # upright at the origin, 24 cm tall
    K = np.array([[2.2 * SIDE, 0, SIDE / 2], [0, 2.2 * SIDE, SIDE / 2], [0, 0, 1]])
    pictures = []
    for t in np.linspace(0, 1, FRAMES):
        angle = 0.6 * np.sin(2 * np.pi * t)  # rad, to the subject's left and right
        eye = np.array([np.sin(angle), 0.05, np.cos(angle)])  # 1 m away; +z is out of the face
        camera = Camera("eye", K, look_at(eye, np.zeros(3), UP), SIDE, SIDE)
        expression = np.zeros(len(avatar.expression_names), np.float32)
        expression[avatar.expression_names.index("jawOpen")] = 0.4 * (1 - np.cos(4 * np.pi * t))
        picture, _ = avatar.render(camera, pose, expression)
        pictures.append(picture)
    write_video(video, pictures, rate=24)
    print(f"video: {video}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
