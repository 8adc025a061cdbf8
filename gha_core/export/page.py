"""The baked avatar as a web page: one file that draws itself, without server or network.

``page/`` holds its parts. Numbers travel as bytes, gzipped, in base64: each coefficient's effect on
each channel is an 8-bit share of its largest.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from gha_core.avatar.head import POSE
from gha_core.cameras import Camera
from gha_core.export.baking import Baked
from gha_core.pose import HeadPose
from gha_core.reenactment.retargeting import farthest

SCRIPTS = ("unpack", "gaussians", "order", "webgl", "cpu", "orbit", "controls", "main")
FOR_WORKERS = ("gaussians", "order", "cpu")  # what those that draw without a graphics card need
# A coefficient belongs to the first group with a prefix of its name.
GROUPS = {
    "Jaw": ("jaw", "tongue"),
    "Mouth": ("mouth",),
    "Eyes": ("eye",),
    "Brows": ("brow",),
    "Cheeks and nose": ("cheek", "nose"),
    "Other": ("",),
}


@dataclass(frozen=True)
class Clip:
    """A tracked sequence to play: ``rate`` frames per second, [T, E] coefficients, [T, 6] poses."""

    name: str
    rate: float
    expressions: NDArray[np.float32]
    conditions: NDArray[np.float32]


@dataclass(frozen=True)
class Bytes:
    """Numbers as 8-bit shares: [K, D, N] ``scale[k, d] * shares``."""

    shares: NDArray[np.int8]
    scale: NDArray[np.float32]

    @staticmethod
    def of(values: Tensor) -> Bytes:
        """From [K, N, D]."""
        planes = values.permute(0, 2, 1)
        scale = (
            planes.abs().amax(2) / 127 if planes.shape[2] else planes.new_zeros(planes.shape[:2])
        )
        shares = (planes / scale.clamp_min(1e-12)[..., None]).round().clamp(-127, 127)
        return Bytes(shares.to(torch.int8).numpy(), scale.numpy())

    def values(self) -> Tensor:
        """[K, N, D]."""
        return torch.from_numpy(self.shares * self.scale[..., None]).permute(0, 2, 1).contiguous()


@dataclass(frozen=True)
class Stored:
    """A baked avatar in bytes; only the first ``moving`` Gaussians answer to expressions."""

    baked: Baked
    carried: Bytes
    learned: Bytes
    posed: Bytes

    @staticmethod
    def of(baked: Baked) -> Stored:
        by_expression, by_pose = baked.learned[:-POSE], baked.learned[-POSE:]
        moves = (baked.carried != 0).any(2).any(0) | (by_expression != 0).any(2).any(0)
        moving = int(moves.nonzero().max()) + 1 if moves.any() else 0
        return Stored(
            baked,
            Bytes.of(baked.carried[:, :moving]),
            Bytes.of(by_expression[:, :moving]),
            Bytes.of(by_pose),
        )

    @property
    def moving(self) -> int:
        return self.carried.shares.shape[2]

    def as_shown(self) -> Baked:
        """What the bytes say, which is what the page shows."""
        still = (0, 0, 0, len(self.baked.means) - self.moving)
        learned = torch.nn.functional.pad(self.learned.values(), still)
        return replace(
            self.baked,
            carried=torch.nn.functional.pad(self.carried.values(), still),
            learned=torch.cat([learned, self.posed.values()]),
        )


def first_view(camera: Camera, pose: HeadPose) -> dict[str, Any]:
    """Where the page's camera starts: as ``camera`` stands to a head in ``pose``, in that head's
    space."""
    eye, ahead = pose.to_head(camera.centre), camera.forward @ pose.matrix
    # It circles the point of its axis that is nearest to the middle of the head.
    target = eye + max(float(-eye @ ahead), 1e-3) * ahead
    offset = eye - target
    distance = float(np.linalg.norm(offset))
    return {
        "target": target.tolist(),
        "yaw": float(np.arctan2(offset[0], offset[2])),
        "pitch": float(np.arcsin(np.clip(offset[1] / distance, -1, 1))),
        "distance": distance,
        "focal": float(camera.K[1, 1] / camera.height),
    }


def render_page(
    title: str,
    footer: str,
    stored: Stored,
    names: Sequence[str],
    clips: Sequence[Clip],
    view: Mapping[str, Any],
) -> str:
    """The page as text.

    Args:
        footer: licences, and what was lost.
        names: of the E expressions.
        view: of :func:`first_view`.
    """
    baked, arrays = stored.baked, _arrays(stored, clips)
    listed, content, start = [], [], 0
    for name, values in arrays.items():
        kind = "int8" if values.dtype == np.int8 else "float32"
        listed.append({"name": name, "kind": kind, "start": start, "length": values.size})
        data = values.tobytes()
        padding = bytes(-len(data) % 4)
        content += [data, padding]
        start += len(data) + len(padding)
    firsts = np.cumsum([0, *(len(clip.expressions) for clip in clips)])
    description = {
        "gaussians": len(baked.means),
        "moving": stored.moving,
        "expressions": list(names),
        "groups": groups(names),
        "farthest": farthest(baked.high[: len(names)].numpy(), names).tolist(),
        "camera": dict(view),
        "clips": [
            {"name": c.name, "rate": c.rate, "first": int(first), "frames": len(c.expressions)}
            for c, first in zip(clips, firsts, strict=False)
        ],
        "arrays": listed,
    }
    folder = Path(__file__).parent / "page"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        footer=footer,
        style=Markup((folder / "page.css").read_text()),
        scripts={name: Markup((folder / f"{name}.js").read_text()) for name in SCRIPTS},
        for_workers=FOR_WORKERS,
        description=jinja2.utils.htmlsafe_json_dumps(description),
        data=base64.b64encode(gzip.compress(b"".join(content), mtime=0)).decode(),
    )


def groups(names: Sequence[str]) -> list[dict[str, Any]]:
    """The expressions by face region: name, and the members' indices."""
    members: dict[str, list[int]] = {group: [] for group in GROUPS}
    for index, name in enumerate(names):
        group = next(group for group, prefixes in GROUPS.items() if name.startswith(prefixes))
        members[group].append(index)
    return [{"name": group, "members": each} for group, each in members.items() if each]


def _arrays(stored: Stored, clips: Sequence[Clip]) -> dict[str, NDArray[Any]]:
    """What the page's scripts read, by name; one array per channel where there are channels."""
    baked = stored.baked
    floats = {
        "means": baked.means,
        "quaternions": baked.quaternions,
        "rest": baked.rest.T,
        "body": baked.body,
        "low": baked.low,
        "high": baked.high,
    }
    arrays: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(values.numpy(), "<f4") for name, values in floats.items()
    }
    for name in ("carried", "learned", "posed"):
        stored_bytes: Bytes = getattr(stored, name)
        arrays[name] = np.ascontiguousarray(stored_bytes.shares)
        arrays[f"{name}Scale"] = np.ascontiguousarray(stored_bytes.scale, "<f4")
    width = len(baked.carried) + POSE
    frames = [np.concatenate([c.expressions, c.conditions], 1) for c in clips]
    arrays["clips"] = np.concatenate([np.zeros((0, width)), *frames]).astype("<f4")
    return arrays
