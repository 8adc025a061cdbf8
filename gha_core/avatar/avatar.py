"""The finished avatar: load it, drive it, look at it from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gha_core.artifacts.images import Image
from gha_core.artifacts.stage_folder import read_json, write_json
from gha_core.avatar import quaternions
from gha_core.avatar.head import GaussianHead, Gaussians, HeadConfig
from gha_core.avatar.rendering import render_colours, render_features
from gha_core.avatar.super_resolution import SCALE, SuperResolution
from gha_core.cameras import Camera
from gha_core.errors import ArtifactError
from gha_core.pose import HeadPose

SCHEMA_VERSION = 2
WEIGHTS_FILE, DESCRIPTION_FILE = "avatar.safetensors", "avatar.json"


@dataclass(frozen=True)
class Avatar:
    """A drivable head.

    Attributes:
        head, super_resolution: the trained model; without the network the picture is the
            Gaussians' colours at full size.
        sharp: whether colours are drawn at full size (see :mod:`gha_core.avatar.rendering`).
        expression_names: what the coefficients mean, in order; empty if tracking did not say.
        lineage: file -> SHA-256 of what it was trained from; licences: asset -> licence of the
            models that had a part in it.
    """

    head: GaussianHead
    super_resolution: SuperResolution | None
    sharp: bool
    expression_names: tuple[str, ...]
    lineage: Mapping[str, str]
    licences: Mapping[str, str]

    @torch.no_grad()
    def render(
        self, camera: Camera, pose: HeadPose, expression: NDArray[np.float32]
    ) -> tuple[Image, Image]:
        """The avatar as ``camera`` sees it (distortion is not applied).

        Args:
            expression: [E] coefficients.

        Returns:
            [H, W, 3] uint8 sRGB on white, and the matte [H, W] uint8.
        """
        rotation = quaternions.from_rotvec(torch.as_tensor(pose.rotation).float())
        translation = torch.as_tensor(pose.translation).float()
        coefficients = torch.as_tensor(np.asarray(expression, np.float32))
        gaussians = self.head(coefficients, self.head.condition(pose))
        world = gaussians.moved(rotation, translation, pose.scale)
        # A size that is no multiple of the scale is rendered larger and cut.
        width, height = -(-camera.width // self._scale), -(-camera.height // self._scale)
        K = torch.from_numpy(camera.K).float()[None]
        w2c = torch.from_numpy(camera.w2c).float()[None]
        drawn, alpha = self._draw(world, K, w2c, width, height)
        picture, matte = (
            (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            for values in (drawn[0].permute(1, 2, 0), alpha[0, 0])
        )
        window = (slice(0, camera.height), slice(0, camera.width))
        return np.ascontiguousarray(picture[window]), np.ascontiguousarray(matte[window])

    def _draw(
        self, world: Gaussians, K: Tensor, w2c: Tensor, width: int, height: int
    ) -> tuple[Tensor, Tensor]:
        """Picture [1, 3, H, W] and alpha [1, 1, H, W], for features of ``width`` x ``height``."""
        size = self._scale * width, self._scale * height
        if self.super_resolution is None:
            return render_colours(world, K, w2c, [(0, 0)], *size)
        image = render_features(world, K, w2c, width, height, self._scale)
        if self.sharp:
            colour, alpha = render_colours(world, K, w2c, [(0, 0)], *size)
            return self.super_resolution(image.whole, colour), alpha
        alpha = torch.nn.functional.interpolate(
            image.alpha, scale_factor=self._scale, mode="bilinear", align_corners=False
        )
        return self.super_resolution(image.whole), alpha

    def save(self, folder: Path) -> None:
        """Write ``avatar.safetensors`` and ``avatar.json``; equal avatars give equal bytes."""
        tensors = {
            f"{part}.{name}": tensor.contiguous()
            for part, module in self._parts().items()
            for name, tensor in module.state_dict().items()
        }
        save_file(tensors, folder / WEIGHTS_FILE)
        description = {
            "schema_version": SCHEMA_VERSION,
            "config": {
                **asdict(self.head.config),
                "super_resolution_width": self.super_resolution.coarse.out_channels
                if self.super_resolution
                else 0,
                "super_resolution_scale": self._scale,
                "sharp": self.sharp,
            },
            "expression_names": list(self.expression_names),
            "lineage": dict(self.lineage),
            "licences": dict(self.licences),
        }
        write_json(folder / DESCRIPTION_FILE, description)

    @staticmethod
    def load(folder: Path) -> Avatar:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: a file is missing or damaged, or of another schema version.
        """
        about, path = folder / DESCRIPTION_FILE, folder / WEIGHTS_FILE
        description = read_json(about)
        version = description.get("schema_version") if isinstance(description, dict) else None
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            raise ArtifactError(
                f"{about} is of schema version {version}, this code reads version "
                f"{SCHEMA_VERSION}. {'Update gha, or run' if newer else 'Run'} the avatar stage "
                "again."
            )
        try:
            config: dict[str, Any] = description["config"]
            # Without memory, until the file is known to hold tensors of these sizes.
            with torch.device("meta"):
                # Later additions to the configuration have defaults that describe avatars
                # without them.
                sizes = {field.name for field in fields(HeadConfig)} & config.keys()
                head = GaussianHead(HeadConfig(**{name: config[name] for name in sizes}))
                width = config["super_resolution_width"]
                scale = config["super_resolution_scale"]
                upsampler = SuperResolution(config["channels"], width, scale) if width else None
            avatar = Avatar(
                head,
                upsampler,
                bool(config["sharp"]),
                tuple(map(str, description["expression_names"])),
                dict(description["lineage"]),
                dict(description["licences"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"{about} does not describe an avatar ({type(error).__name__}: {error}). Run the "
                "avatar stage again."
            ) from None
        try:
            tensors = load_file(path)
            for part, module in avatar._parts().items():
                module.load_state_dict(
                    {
                        name.removeprefix(f"{part}."): tensor.float()
                        for name, tensor in tensors.items()
                        if name.startswith(f"{part}.")
                    },
                    assign=True,
                )
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist. Run the avatar stage.") from None
        except (SafetensorError, RuntimeError) as error:
            raise ArtifactError(
                f"{path} does not fit its description ({error}). Run the avatar stage again."
            ) from None
        for module in avatar._parts().values():
            module.eval()
        return avatar

    @property
    def _scale(self) -> int:
        """Picture pixels per feature pixel, if there is a feature image."""
        return self.super_resolution.scale if self.super_resolution else SCALE

    def _parts(self) -> dict[str, torch.nn.Module]:
        parts: dict[str, torch.nn.Module] = {"head": self.head}
        if self.super_resolution is not None:
            parts["super_resolution"] = self.super_resolution
        return parts
