"""Matting networks from a user's file: TorchScript or ONNX, behind one call."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.errors import AssetError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Published:
    """The interface of a network as its authors published it.

    Attributes:
        name: of the network, for people; licence: of the published weights; page: where they are.
        inputs: names of the ONNX model's inputs, in the order of TorchScript's arguments.
        outputs: names of the ONNX model's outputs that are needed, in TorchScript's order.
    """

    name: str
    licence: str
    page: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Network(Protocol):
    """A loaded network; may be used from many threads."""

    def __call__(self, *inputs: Floats | float | None) -> list[Floats]:
        """The needed outputs. None is a recurrent state before the first frame."""
        ...


def open_network(file: Path, published: Published, settings: dict[str, Any]) -> Network:
    """Load ``file``, whose contents tell whether it is ONNX or TorchScript.

    Args:
        settings: attributes to set on a TorchScript module that has them.

    Raises:
        AssetError: no such file, another kind of file, another network, or no ONNX Runtime.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise AssetError(
            f"The weights of {published.name} cannot be read: {error}. Set matting.weights to the "
            f"TorchScript or ONNX file from {published.page} (licence: {published.licence})."
        ) from error
    if start == b"PK\x03\x04":
        return _TorchScript(file, published, settings)
    return _Onnx(file, published)


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def planes(image: Image) -> Floats:
    """[1, 3, H, W] 0..1 of an [H, W, 3] uint8 image."""
    batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    return np.multiply(batch, 1 / 255, dtype=np.float32)


def alpha_of(output: Floats, image: Image, file: Path) -> Floats:
    """[H, W] 0..1 of a network's [1, 1, H', W'] alpha, H' >= H and W' >= W.

    Raises:
        AssetError: it has another shape, so that it is no alpha of this image.
    """
    height, width = image.shape[:2]
    if (
        output.ndim != 4
        or output.shape[:2] != (1, 1)
        or np.any(np.less(output.shape[2:], (height, width)))
    ):
        raise AssetError(
            f"{file} gives an alpha of shape {tuple(output.shape)} for an image of {width}x{height}"
            " pixels; expected one value per pixel. Is it the network that matting.backend names?"
        )
    return np.clip(output[0, 0, :height, :width], 0, 1)


class _TorchScript:
    """Runs in float32 on the processor, whatever precision the file has."""

    def __init__(self, file: Path, published: Published, settings: dict[str, Any]) -> None:
        import torch  # takes seconds, which only those who ask for it should pay

        try:
            module = torch.jit.load(str(file), map_location="cpu").eval().float()
        except (RuntimeError, ValueError) as error:
            raise AssetError(
                f"{file} is not a TorchScript model ({_first_line(error)}). A checkpoint of bare "
                "weights lacks the network: take the TorchScript or ONNX file of "
                f"{published.name} from {published.page}."
            ) from error
        given = [argument.name for argument in module.forward.schema.arguments[1:]]
        if len(given) < len(published.inputs):
            raise _other_network(file, published, given)
        for name, value in settings.items():
            if hasattr(module, name):
                setattr(module, name, value)
        self._module = module
        self._file = file
        self._published = published

    def __call__(self, *inputs: Floats | float | None) -> list[Floats]:
        import torch

        tensors = [
            torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in inputs
        ]
        try:
            with torch.inference_mode():
                outputs = self._module(*tensors)
        except RuntimeError as error:
            raise _failed(self._file, self._published, error) from error
        found = [each for each in outputs if isinstance(each, torch.Tensor)]
        count = len(self._published.outputs)
        if len(found) < count:
            raise _other_network(self._file, self._published, [f"{len(found)} outputs"])
        return [each.float().numpy() for each in found[:count]]


class _Onnx:
    """Runs on one core: images are what is done side by side."""

    def __init__(self, file: Path, published: Published) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise AssetError(
                f"{file} is not TorchScript, and ONNX models need ONNX Runtime ({error}): "
                "pip install onnxruntime. Or take the TorchScript file of the same network."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime has an exception of its own per kind of damage.
        except Exception as error:
            raise AssetError(
                f"{file} is neither a TorchScript nor an ONNX model ({_first_line(error)}). Take "
                f"the file of {published.name} from {published.page}."
            ) from error
        inputs = {each.name: each for each in session.get_inputs()}
        outputs = [each.name for each in session.get_outputs()]
        if set(inputs) != set(published.inputs) or not set(published.outputs) <= set(outputs):
            raise _other_network(file, published, list(inputs))
        self._types = [
            np.float16 if inputs[name].type == "tensor(float16)" else np.float32
            for name in published.inputs
        ]
        self._session = session
        self._file = file
        self._published = published

    def __call__(self, *inputs: Floats | float | None) -> list[Floats]:
        feed = {
            name: _array(value, dtype)
            for name, value, dtype in zip(self._published.inputs, inputs, self._types, strict=True)
        }
        try:
            outputs = self._session.run(list(self._published.outputs), feed)
        except Exception as error:
            raise _failed(self._file, self._published, error) from error
        return [each.astype(np.float32) for each in outputs]


def _array(value: Floats | float | None, dtype: type) -> NDArray:
    if value is None:
        return np.zeros((1, 1, 1, 1), dtype)
    return np.asarray(value if isinstance(value, np.ndarray) else [value], dtype)


def _other_network(file: Path, published: Published, found: Sequence[str]) -> AssetError:
    return AssetError(
        f"{file} is not {published.name}, which takes {', '.join(published.inputs)}; this one has "
        f"{', '.join(found) or 'none of them'}. Take the TorchScript or ONNX file from "
        f"{published.page}, or choose another matting.backend."
    )


def _failed(file: Path, published: Published, error: Exception) -> AssetError:
    last = ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason"])[-1]
    return AssetError(
        f"{file} loads but does not run as {published.name} does: {last}. Is it the "
        f"file from {published.page}, unchanged?"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
