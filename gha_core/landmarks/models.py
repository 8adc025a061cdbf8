"""Running tflite models with LiteRT from several threads."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.assets import asset_path

Floats = NDArray[np.float32]


class Model:
    """One tflite asset as a function from a batch-of-one image tensor to its outputs.

    An interpreter is not thread-safe, so that each thread gets its own. Each runs on one core:
    images are independent of each other, which is the better thing to do in parallel, and results
    do not depend on the number of threads.
    """

    def __init__(self, asset: str) -> None:
        self._asset = asset
        self._local = threading.local()

    @cached_property
    def _bytes(self) -> bytes:
        return asset_path(self._asset).read_bytes()

    def _interpreter(self) -> Any:
        if not hasattr(self._local, "interpreter"):
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=self._bytes, num_threads=1)
            interpreter.allocate_tensors()
            self._local.interpreter = interpreter
            self._local.input = interpreter.get_input_details()[0]["index"]
            self._local.outputs = [item["index"] for item in interpreter.get_output_details()]
        return self._local.interpreter

    def __call__(self, image: Floats) -> list[Floats]:
        """``image`` [H, W, 3] of the model's input size; outputs without the batch dimension."""
        interpreter = self._interpreter()
        interpreter.set_tensor(self._local.input, image[None])
        interpreter.invoke()
        return [interpreter.get_tensor(index)[0] for index in self._local.outputs]
