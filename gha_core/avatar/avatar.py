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

from gha_core.artifacts.images import Image
from gha_core.artifacts.stage_folder import read_json, write_json
from gha_core.avatar import quaternions
from gha_core.avatar.head import GaussianHead, HeadConfig
from gha_core.avatar.rendering import render_colours, render_features
from gha_core.avatar.super_resolution import SCALE, SuperResolution
from gha_core.cameras import Camera
from gha_core.errors import ArtifactError
from gha_core.pose import HeadPose

SCHEMA_VERSION = 1
WEIGHTS_FILE, DESCRIPTION_FILE = "avatar.safetensors", "avatar.json"


@dataclass(frozen=True)
class Avatar:
    """A drivable head.

    Attributes:
        head, super_resolution: the trained model.
        sharp: whether colours are drawn at full size (see :mod:`gha_core.avatar.rendering`).
        expression_names: what the coefficients mean, in order; empty if tracking did not say.
        lineage: file -> SHA-256 of what it was trained from; licences: asset -> licence of the
            models that had a part in it.
    """

    head: GaussianHead
    super_resolution: SuperResolution
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
        # An odd size is rendered one pixel larger and cut.
        width, height = -(-camera.width // SCALE), -(-camera.height // SCALE)
        K = torch.from_numpy(camera.K).float()[None]
        w2c = torch.from_numpy(camera.w2c).float()[None]
        image = render_features(world, K, w2c, width, height)
        if self.sharp:
            size = SCALE * width, SCALE * height
            colour, alpha = render_colours(world, K, w2c, [(0, 0)], *size)
        else:
            colour = None
            alpha = torch.nn.functional.interpolate(
                image.alpha, scale_factor=SCALE, mode="bilinear", align_corners=False
            )
        drawn = self.super_resolution(image.whole, colour)[0].permute(1, 2, 0)
        picture, matte = (
            (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            for values in (drawn, alpha[0, 0])
        )
        window = (slice(0, camera.height), slice(0, camera.width))
        return np.ascontiguousarray(picture[window]), np.ascontiguousarray(matte[window])

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
                "super_resolution_width": self.super_resolution.coarse.out_channels,
                "super_resolution_scale": SCALE,
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
        description = read_json(folder / DESCRIPTION_FILE)
        version = description.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{folder / DESCRIPTION_FILE} is of schema version {version}, this code reads "
                f"version {SCHEMA_VERSION}. Run the avatar stage again."
            )
        config: dict[str, Any] = description["config"]
        head = GaussianHead(
            HeadConfig(**{field.name: config[field.name] for field in fields(HeadConfig)})
        )
        upsampler = SuperResolution(config["channels"], config["super_resolution_width"])
        avatar = Avatar(
            head,
            upsampler,
            config["sharp"],
            tuple(description["expression_names"]),
            description["lineage"],
            description["licences"],
        )
        path = folder / WEIGHTS_FILE
        try:
            tensors = load_file(path)
            for part, module in avatar._parts().items():
                module.load_state_dict(
                    {
                        name.removeprefix(f"{part}."): tensor
                        for name, tensor in tensors.items()
                        if name.startswith(f"{part}.")
                    }
                )
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist. Run the avatar stage.") from None
        except (SafetensorError, RuntimeError) as error:
            raise ArtifactError(
                f"{path} does not fit its description ({error}). Run the avatar stage again."
            ) from None
        head.eval()
        upsampler.eval()
        return avatar

    def _parts(self) -> dict[str, torch.nn.Module]:
        return {"head": self.head, "super_resolution": self.super_resolution}
