"""The one place where the tables of all artifacts are declared.

A row key is (subject, sequence, timestep, camera) or the part of it that a table needs; tables are
sorted by it. Every schema carries a version in its metadata, every numeric column its unit where
it has one. :mod:`gha_core.artifacts.tables` enforces them on write and on read.
"""

from __future__ import annotations

import pyarrow as pa

VERSION = 1

SUBJECT = pa.field("subject", pa.string(), nullable=False)
SEQUENCE = pa.field("sequence", pa.string(), nullable=False)
TIMESTEP = pa.field("timestep", pa.int32(), nullable=False)
CAMERA = pa.field("camera", pa.string(), nullable=False)

VIEW_KEY = [SUBJECT, SEQUENCE, TIMESTEP, CAMERA]
FRAME_KEY = [SUBJECT, SEQUENCE, TIMESTEP]


def _field(name: str, kind: pa.DataType, unit: str = "", nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit} if unit else None)


def _schema(name: str, key: list[pa.Field], *fields: pa.Field) -> pa.Schema:
    return pa.schema(
        [*key, *fields],
        metadata={
            "gha.table": name,
            "gha.version": str(VERSION),
            "gha.key": ",".join(field.name for field in key),
        },
    )


def _vector(size: int = -1, kind: pa.DataType | None = None) -> pa.DataType:
    return pa.list_(kind or pa.float64(), size)


# ingest ------------------------------------------------------------------------------------------
FRAMES = _schema(
    "frames",
    VIEW_KEY,
    _field("image", pa.binary(), "encoded sRGB image (JPEG or PNG)"),
    _field("width", pa.int32(), "px"),
    _field("height", pa.int32(), "px"),
    _field("time", pa.float64(), "s"),
    _field("sharpness", pa.float32(), "variance of the Laplacian of luma, 8-bit levels squared"),
    _field("transform", _vector(9), "3x3, row-major: source pixel -> stored pixel"),
    _field("source_width", pa.int32(), "px"),
    _field("source_height", pa.int32(), "px"),
)
CAMERAS = _schema(
    "cameras",
    [SUBJECT, CAMERA],
    _field("K", _vector(9), "3x3 row-major, px of the stored frames, first pixel centre (.5, .5)"),
    _field("distortion", _vector(5), "k1 k2 p1 p2 k3 (OpenCV); zeros once undistorted"),
    _field("w2c", _vector(16), "4x4 row-major, OpenCV world to camera, m"),
    _field("width", pa.int32(), "px"),
    _field("height", pa.int32(), "px"),
    # With a frame's transform these lead back to the pixel that was filmed; null: as stored.
    _field("source_K", _vector(9), "3x3 row-major, px of the source", nullable=True),
    _field("source_distortion", _vector(5), "k1 k2 p1 p2 k3 of the source", nullable=True),
)
BACKGROUNDS = _schema(
    "backgrounds",
    [SUBJECT, CAMERA],
    _field("image", pa.binary(), "encoded sRGB image, same crop and size as the frames"),
    _field("width", pa.int32(), "px"),
    _field("height", pa.int32(), "px"),
)
# What the capture came with, in the pixels of the stored frames: see also ALPHA (mattes.parquet).
GIVEN_TRACKING = _schema(
    "given_tracking",
    FRAME_KEY,
    _field("model", pa.string(), "the face model that was tracked"),
    _field("rotation", _vector(3), "axis-angle, rad, the model's head -> world"),
    _field("root", _vector(3), "axis-angle, rad, the model's root alone -> world"),
    _field("translation", _vector(3), "world, m"),
    _field("scale", pa.float64(), "m per unit of the model"),
    _field("coefficients", pa.map_(pa.string(), _vector(kind=pa.float32())), "as they were found"),
)
# Every stage that sets single frames aside writes one; camera is "" when a whole timestep is out.
REJECTS = _schema("rejects", VIEW_KEY, _field("reason", pa.string()))

# matting -----------------------------------------------------------------------------------------
ALPHA = _schema(
    "alpha",
    VIEW_KEY,
    _field("alpha", pa.binary(), "encoded 8-bit single-channel PNG, 255 = foreground"),
    _field("width", pa.int32(), "px"),
    _field("height", pa.int32(), "px"),
)

# landmarks ---------------------------------------------------------------------------------------
LANDMARKS = _schema(
    "landmarks",
    VIEW_KEY,
    _field("detector", pa.string()),
    _field("points", _vector(kind=pa.float32()), "L x 2 row-major, px of the stored frame"),
    _field("confidence", pa.float32(), "0..1"),
    _field("box", _vector(4, pa.float32()), "x0 y0 x1 y1, px of the stored frame"),
)
LANDMARKS_3D = _schema(
    "landmarks3d",
    FRAME_KEY,
    _field("points", _vector(kind=pa.float32()), "L x 3 row-major, world, m; NaN where unknown"),
    _field("error", _vector(kind=pa.float32()), "L, median reprojection error, px"),
    _field("views", _vector(kind=pa.int32()), "L, number of inlier views"),
)

# tracking ----------------------------------------------------------------------------------------
TRACKING = _schema(
    "tracking",
    FRAME_KEY,
    _field("rotation", _vector(3), "axis-angle, rad, head -> world"),
    _field("translation", _vector(3), "m, world position of the head origin"),
    _field("scale", pa.float64(), "m per unit of head space"),
    _field("expression", _vector(kind=pa.float32()), "coefficients, 0..1, in the model's order"),
    _field("landmarks", _vector(kind=pa.float32()), "M x 3 row-major, head space, with expression"),
    _field("residual", pa.float32(), "px, RMS of landmark reprojection over all views"),
)

# geometry and avatar -----------------------------------------------------------------------------
HISTORY = _schema(
    "history",
    [pa.field("step", pa.int64(), nullable=False), pa.field("term", pa.string(), nullable=False)],
    _field("value", pa.float64(), "unweighted value of the loss term"),
)

# evaluation --------------------------------------------------------------------------------------
SCORES = _schema(
    "scores",
    [
        *VIEW_KEY,
        pa.field("task", pa.string(), nullable=False),
        pa.field("region", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
    ],
    _field("value", pa.float64(), "psnr: dB; akd: px; NaN where undefined"),
)
