"""Encoded images: H x W x 3 uint8 sRGB (RGB order) or H x W uint8 mattes, to bytes and back."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.errors import ArtifactError

Image = NDArray[np.uint8]


def encode_jpeg(image: Image, quality: int = 95) -> bytes:
    """JPEG without chroma subsampling: lips and iris edges are chroma edges."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]  # fmt: skip
    return _encode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR).astype(np.uint8), options)


def encode_png(image: Image) -> bytes:
    """Lossless, for colour images (H x W x 3) and mattes (H x W)."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR).astype(np.uint8)
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def decode_image(data: bytes) -> Image:
    """H x W x 3 uint8 sRGB."""
    return cv2.cvtColor(_decode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.uint8)


def decode_matte(data: bytes) -> Image:
    """H x W uint8, 255 = foreground."""
    return _decode(data, cv2.IMREAD_GRAYSCALE)


def _encode(suffix: str, image: Image, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    if not done:
        raise ArtifactError(f"An image of shape {image.shape} could not be encoded as {suffix}.")
    return data.tobytes()


def _decode(data: bytes, flags: int) -> Image:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ArtifactError("Stored bytes are not an image; delete the artifact and run its stage.")
    return image.astype(np.uint8, copy=False)
