"""One picture of many small ones, for the previews of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from gha_core.artifacts.images import Image

ViewKey = tuple[str, int, str]  # sequence, timestep, camera

_MARGIN, _LABEL, _PAPER, _INK = 4, 16, 250, (60, 60, 60)


def contact_sheet(
    rows: Mapping[str, Mapping[str, Image]], columns: Sequence[str], side: int = 160
) -> Image:
    """Tiles in labelled rows and columns.

    Args:
        rows: per row label, per column label an H x W x 3 uint8 picture; gaps stay empty.
        side: longest side of a tile, px.
    """
    cell = side + _MARGIN
    height = _LABEL + len(rows) * (cell + _LABEL)
    sheet = np.full((height, _MARGIN + max(1, len(columns)) * cell, 3), _PAPER, np.uint8)
    for j, column in enumerate(columns):
        _write(sheet, column, _MARGIN + j * cell, _LABEL - 4, side)
    for i, (label, tiles) in enumerate(rows.items()):
        top = _LABEL + i * (cell + _LABEL)
        _write(sheet, label, _MARGIN, top + _LABEL - 5, sheet.shape[1])
        for j, column in enumerate(columns):
            if column in tiles:
                tile = _shrunk(tiles[column], side)
                y, x = top + _LABEL, _MARGIN + j * cell
                sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def views_sheet(pictures: Mapping[ViewKey, Image], side: int = 160) -> Image:
    """A contact sheet of views: cameras across and moments down, the other way round for a single
    camera.

    Args:
        pictures: H x W x 3 uint8 by (sequence, timestep, camera).
    """
    cameras = sorted({camera for _, _, camera in pictures})
    rows: dict[str, dict[str, Image]] = {}
    columns: dict[str, None] = {}
    for (sequence, timestep, camera), picture in sorted(pictures.items(), key=lambda item: item[0]):
        moment = f"{sequence} {timestep}"
        row, column = (moment, camera) if len(cameras) > 1 else (camera, moment)
        rows.setdefault(row, {})[column] = picture
        columns[column] = None
    names = cameras if len(cameras) > 1 else list(columns)
    return contact_sheet(rows, names, side)


def _shrunk(image: Image, side: int) -> Image:
    factor = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _write(sheet: Image, text: str, x: int, y: int, room: int) -> None:
    fits = max(3, room // 7)
    cv2.putText(
        sheet, text[:fits], (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _INK, 1, cv2.LINE_AA
    )  # fmt: skip
