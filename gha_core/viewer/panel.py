"""The controls of one browser tab."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import viser

from gha_core.reenactment.retargeting import farthest
from gha_core.viewer.subject import Subject

ORBIT, COMPARE = "orbit", "beside the photo"
LAYERS = ("avatar", "Gaussians", "geometry mesh", "tracking mesh", "landmarks", "cameras")
# ARKit's names begin with the part of the face that they move; the first that fits counts.
_REGIONS = {
    "gaze": ("eyeLook",),
    "eyes": ("eye",),
    "brows": ("brow",),
    "cheeks and nose": ("cheek", "nose"),
    "jaw": ("jaw",),
    "mouth": ("mouth",),
    "tongue": ("tongue",),
}
_TURNS = ("yaw", "pitch", "roll")
_STEP = 0.01  # of a coefficient
_SHIFTS = ("left", "up", "forward")


@dataclass(frozen=True)
class Panel:
    """Handles of all controls, by what they control.

    Attributes:
        expression: coefficient name -> slider; turns: degrees; shifts: cm, all from the mean pose.
    """

    sequence: viser.GuiDropdownHandle[str]
    timestep: viser.GuiSliderHandle[int]
    play: viser.GuiCheckboxHandle
    head_pose: viser.GuiCheckboxHandle
    mode: viser.GuiDropdownHandle[str]
    camera: viser.GuiDropdownHandle[str]
    screenshot: viser.GuiButtonHandle
    facts: viser.GuiMarkdownHandle
    neutral: viser.GuiButtonHandle
    expression: dict[str, viser.GuiSliderHandle[float]]
    centre: viser.GuiButtonHandle
    turns: dict[str, viser.GuiSliderHandle[float]]
    shifts: dict[str, viser.GuiSliderHandle[float]]
    layers: dict[str, viser.GuiCheckboxHandle]


def by_region(names: Sequence[str]) -> dict[str, list[str]]:
    """The coefficients of each region of the face; "other" for those that are not ARKit's."""
    regions: dict[str, list[str]] = {}
    for name in names:
        fitting = (r for r, starts in _REGIONS.items() if name.startswith(starts))
        regions.setdefault(next(fitting, "other"), []).append(name)
    order = [*_REGIONS, "other"]
    return dict(sorted(regions.items(), key=lambda item: order.index(item[0])))


def build(gui: viser.GuiApi, subject: Subject, camera_name: str) -> Panel:
    """Add the controls to a client's panel; ``camera_name`` is chosen at first."""
    first, cameras = next(iter(subject.sequences)), tuple(sorted(subject.dataset.cameras))
    tabs = gui.add_tab_group()
    with tabs.add_tab("Play"):
        mode = gui.add_dropdown("view", (ORBIT, COMPARE))
        camera = gui.add_dropdown("camera", cameras, initial_value=camera_name)
        sequence = gui.add_dropdown("sequence", tuple(subject.sequences), initial_value=first)
        timestep = gui.add_slider("frame", 0, max(1, len(subject.sequences[first]) - 1), 1, 0)
        play = gui.add_checkbox("play", False)
        head_pose = gui.add_checkbox("with head movement", True)
        screenshot = gui.add_button("Screenshot", icon=viser.Icon.CAMERA)
        facts = gui.add_markdown("")
    expression = {}
    names = subject.face.expression_names
    seen = [moment.expression for moments in subject.sequences.values() for moment in moments]
    ends = np.ceil(farthest(np.max(seen, axis=0), names).astype(float) / _STEP) * _STEP
    reach = dict(zip(names, ends.tolist(), strict=True))
    with tabs.add_tab("Face"):
        neutral = gui.add_button("Neutral")
        for region, members in by_region(names).items():
            with gui.add_folder(region, expand_by_default=region in ("jaw", "eyes", "other")):
                for name in members:
                    expression[name] = gui.add_slider(name, 0.0, reach[name], _STEP, 0.0)
    with tabs.add_tab("Pose"):
        centre = gui.add_button("Centre")
        turns = {name: gui.add_slider(name, -60.0, 60.0, 0.5, 0.0) for name in _TURNS}
        shifts = {name: gui.add_slider(name, -15.0, 15.0, 0.1, 0.0) for name in _SHIFTS}
    with tabs.add_tab("Layers"):
        layers = {name: gui.add_checkbox(name, name == "avatar") for name in LAYERS}
    return Panel(
        sequence, timestep, play, head_pose, mode, camera, screenshot, facts, neutral,
        {name: expression[name] for name in names},
        centre, turns, shifts, layers,
    )  # fmt: skip
