"""What an opened capture holds, in a few lines for people."""

from __future__ import annotations

from collections import Counter

from gha_core.capture.capture import Capture


def describe(capture: Capture) -> list[str]:
    """Cameras, sequences, sizes, and what the capture brings along; then its notes."""
    sizes = Counter((camera.width, camera.height) for camera in capture.cameras)
    shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
    kind = "calibrated" if capture.calibrated else "not calibrated"
    bent = sum(bool(camera.distortion.any()) for camera in capture.cameras)
    lens = f", lens distortion of {bent}" if bent else ""
    lines = [f"{_count(len(capture.cameras), 'camera')}, {shown} pixels, {kind}{lens}"]
    total = sum(each.frames for each in capture.sequences)
    lines.append(
        f"{_count(len(capture.sequences), 'sequence')} of {_count(total, 'timestep')}: "
        + ", ".join(f"{s.name} {s.frames} at {s.rate:.4g}/s" for s in capture.sequences[:6])
        + (", …" if len(capture.sequences) > 6 else "")
    )
    plates = sum(capture.background(camera.name) is not None for camera in capture.cameras)
    mattes = f"{len(capture.matted)} of the cameras" if capture.matted else "none"
    lines.append(f"background plates: {plates or 'none'}; mattes: {mattes}; {_tracking(capture)}")
    return [*lines, *capture.notes]


def _tracking(capture: Capture) -> str:
    tracking = capture.tracking
    if tracking is None:
        return "tracking: none"
    chosen = {each.name for each in capture.sequences}
    count = sum(name in chosen for name, _ in tracking.frames)
    return f"tracking: {tracking.model} of {_count(count, 'timestep')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
