"""Photo, avatar and their difference, side by side."""

from __future__ import annotations

import cv2
import numpy as np

from gha_core.artifacts.images import Image

_CAPTION = 24  # px
ERROR_RANGE = 64  # levels of difference at which the heat-map is brightest


def heat_map(truth: Image, image: Image) -> Image:
    """[H, W, 3] black where the two agree, bright where they differ by ERROR_RANGE or more."""
    error = np.abs(truth.astype(np.int16) - image).mean(-1)
    levels = np.clip(error * (255 / ERROR_RANGE), 0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB).astype(np.uint8)


def side_by_side(pictures: dict[str, Image], width: int, height: int) -> Image:
    """[height, width, 3] the pictures, which are of one size, on white with their names below: in
    as many columns as make them largest."""
    tall, wide = next(iter(pictures.values())).shape[:2]

    def scale(columns: int) -> float:
        rows = -(-len(pictures) // columns)
        return min(width / (columns * wide), (height / rows - _CAPTION) / tall)

    columns = max(range(1, len(pictures) + 1), key=scale)
    size = max(1, int(wide * scale(columns))), max(1, int(tall * scale(columns)))
    method = cv2.INTER_AREA if scale(columns) < 1 else cv2.INTER_CUBIC
    rows = -(-len(pictures) // columns)
    sheet = np.full((height, width, 3), 255, np.uint8)
    corner = (width - columns * size[0]) // 2, (height - rows * (size[1] + _CAPTION)) // 2
    for index, (name, picture) in enumerate(pictures.items()):
        left = corner[0] + index % columns * size[0]
        top = corner[1] + index // columns * (size[1] + _CAPTION)
        resized = cv2.resize(picture, size, interpolation=method)
        sheet[top : top + size[1], left : left + size[0]] = resized
        place = left + 8, top + size[1] + 17
        cv2.putText(sheet, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60,) * 3, 1, cv2.LINE_AA)
    return sheet
