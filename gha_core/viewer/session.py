"""One browser tab: what it shows now, and the thread that draws it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np
import viser
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from gha_core.artifacts.images import Image, encode_png
from gha_core.cameras import Camera
from gha_core.evaluation.metrics import psnr
from gha_core.pose import HeadPose
from gha_core.viewer.comparison import heat_map, side_by_side
from gha_core.viewer.layers import Layers, field_of_view
from gha_core.viewer.painter import Painter
from gha_core.viewer.panel import COMPARE, Panel, build
from gha_core.viewer.subject import Moment, Subject

REST = 0.25  # s without a change before the picture is drawn in full
FRAME = 1 / 20  # s that a picture may take while something moves
SMALLEST, LARGEST = 192**2, 1100**2  # px of a picture, while moving and at rest
FASTEST = 30.0  # pictures per second


@dataclass(frozen=True)
class _Drawn:
    """A picture, and what there is to say about it."""

    image: Image
    facts: str


class Session:
    """Draws for one client until it leaves.

    A small picture follows each change at once; its size is what takes FRAME seconds to draw. When
    nothing has changed for REST seconds, the picture in full takes its place.

    Args:
        centre: the mean pose, from which the pose's sliders count; camera: the one to compare with
            at first.
    """

    def __init__(
        self, client: viser.ClientHandle, subject: Subject, centre: HeadPose, camera: str
    ) -> None:
        self._client, self._subject, self._centre = client, subject, centre
        self._painter = Painter(subject.avatar)
        self._panel: Panel = build(client.gui, subject, camera)
        self._layers = Layers(client.scene, subject, self._look_through)
        self._changed, self._closed = Event(), Event()
        self._area = 256.0**2
        self._following = False  # the sliders are being set to a frame: not a change by hand
        self._began: tuple[float, int] | None = None  # of playing: when, at which frame
        self._connect()
        self._follow()
        self._thread = Thread(target=self._run, name=f"viewer-{client.client_id}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; it may still finish a picture."""
        self._closed.set()
        self._changed.set()
        self._thread.join(timeout=30)

    # What the controls say ------------------------------------------------------------------------

    @property
    def _moments(self) -> list[Moment]:
        return self._subject.sequences[self._panel.sequence.value]

    @property
    def _moment(self) -> Moment:
        return self._moments[min(int(self._panel.timestep.value), len(self._moments) - 1)]

    @property
    def _playing(self) -> bool:
        return self._panel.play.value

    def _motion(self) -> tuple[HeadPose, NDArray[np.float32]]:
        """Of the frame while playing; else of the sliders."""
        if self._playing:
            moment = self._moment
            return (moment.pose if self._panel.head_pose.value else self._centre), moment.expression
        expression = np.array([each.value for each in self._panel.expression.values()], np.float32)
        degrees = [each.value for each in self._panel.turns.values()]
        centimetres = np.array([each.value for each in self._panel.shifts.values()])
        centre = Rotation.from_rotvec(self._centre.rotation)
        turn = centre * Rotation.from_euler("YXZ", degrees, degrees=True)
        place = self._centre.translation + centre.apply(centimetres / 100)
        return HeadPose(turn.as_rotvec(), place, self._centre.scale), expression

    def _camera(self, area: float) -> Camera:
        """The browser's, at a size of at most ``area`` pixels."""
        seen = self._client.camera
        height, width = max(seen.image_height, 2), max(seen.image_width, 2)
        shrink = min(1.0, (area / (height * width)) ** 0.5)
        height, width = max(2, round(height * shrink)), max(2, round(width * shrink))
        focal = height / 2 / np.tan(seen.fov / 2)
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        w2c = np.eye(4)
        w2c[:3, :3] = viser.transforms.SO3(seen.wxyz).inverse().as_matrix()
        w2c[:3, 3] = -w2c[:3, :3] @ seen.position
        return Camera("browser", K, w2c, width, height)

    # What happens to the controls -----------------------------------------------------------------

    def _connect(self) -> None:
        panel = self._panel

        def touched(_: object = None) -> None:
            self._changed.set()

        def by_hand(_: object = None) -> None:
            if not self._following and self._playing:
                _put(panel.play, False)
            touched()

        self._client.camera.on_update(touched)
        handles: list[Any] = [panel.mode, panel.camera, *panel.layers.values()]
        for handle in handles:
            handle.on_update(touched)
        for slider in (
            *panel.expression.values(),
            *panel.turns.values(),
            *panel.shifts.values(),
        ):
            slider.on_update(by_hand)
        panel.head_pose.on_update(lambda _: self._follow())
        panel.sequence.on_update(lambda _: self._choose_sequence())
        panel.timestep.on_update(lambda _: self._scrub())
        panel.play.on_update(lambda _: self._play_or_pause())
        panel.neutral.on_click(
            lambda _: self._set(panel.expression, np.zeros(len(panel.expression)))
        )
        panel.centre.on_click(lambda _: self._set(panel.turns | panel.shifts, np.zeros(6)))
        panel.screenshot.on_click(lambda _: self._download())

    def _set(
        self, sliders: dict[str, viser.GuiSliderHandle[float]], values: NDArray[np.floating]
    ) -> None:
        self._following = True
        with self._client.atomic():
            for slider, value in zip(sliders.values(), values, strict=True):
                _put(slider, float(np.clip(round(float(value), 4), slider.min, slider.max)))
        self._following = False
        self._changed.set()

    def _follow(self) -> None:
        """Set the sliders to the frame."""
        moment, centre = self._moment, Rotation.from_rotvec(self._centre.rotation)
        self._set(self._panel.expression, moment.expression)
        pose = moment.pose if self._panel.head_pose.value else self._centre
        turn = centre.inv() * Rotation.from_rotvec(pose.rotation)
        shift = 100 * centre.inv().apply(pose.translation - self._centre.translation)
        self._set(self._panel.turns, turn.as_euler("YXZ", degrees=True))
        self._set(self._panel.shifts, shift)

    def _choose_sequence(self) -> None:
        self._panel.timestep.max = max(1, len(self._moments) - 1)
        self._began = (time.monotonic(), 0) if self._playing else None
        self._following = True
        _put(self._panel.timestep, 0)
        self._following = False
        self._follow()

    def _scrub(self) -> None:
        if self._following:
            return
        if self._playing:
            self._began = time.monotonic(), int(self._panel.timestep.value)
        else:
            self._follow()

    def _play_or_pause(self) -> None:
        if self._playing:
            self._began = time.monotonic(), int(self._panel.timestep.value)
        else:
            self._began = None
            self._follow()
        self._changed.set()

    def _look_through(self, name: str) -> None:
        """Go to where a camera of the capture stands."""
        _put(self._panel.camera, name)
        camera = self._subject.dataset.cameras[name]
        distance = float(np.linalg.norm(camera.centre - self._centre.translation))
        with self._client.atomic():
            self._client.camera.position = camera.centre
            self._client.camera.look_at = camera.centre + distance * camera.forward
            self._client.camera.fov = field_of_view(camera)

    def _download(self) -> None:
        drawn = self._draw(full=True)
        name = f"{self._subject.name}_{self._panel.sequence.value}_{self._moment.timestep}.png"
        self._client.send_file_download(name, encode_png(drawn.image), save_immediately=True)

    # Drawing --------------------------------------------------------------------------------------

    def _run(self) -> None:
        refined, next_one = True, 0.0
        while True:
            playing = self._playing
            wait = max(0.0, next_one - time.monotonic()) if playing else None if refined else REST
            changed = self._changed.wait(wait)
            if self._closed.is_set():
                return
            self._changed.clear()
            if playing:
                self._advance()
            began = time.monotonic()
            next_one = began + 1 / FASTEST
            try:
                if changed or playing:
                    self._send(self._draw(full=False), quality=80)
                    self._adapt(time.monotonic() - began)
                    self._show_layers(moving=True)
                    refined = False
                else:
                    self._send(self._draw(full=True), quality=95)
                    self._show_layers(moving=False)
                    refined = True
            except Exception:
                if self._closed.is_set() or self._client_left():
                    return
                raise

    def _client_left(self) -> bool:
        return self._client.client_id not in self._client._viser_server.get_clients()

    def _advance(self) -> None:
        """To the frame whose time it is; round and round."""
        if self._began is None:
            return
        started, first = self._began
        times = np.array([moment.time for moment in self._moments])
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
        passed = int((time.monotonic() - started) / max(step, 1e-3))
        self._following = True
        _put(self._panel.timestep, (first + passed) % len(self._moments))
        self._following = False

    def _adapt(self, took: float) -> None:
        self._area = float(np.clip(self._area * (FRAME / took) ** 0.5, SMALLEST, LARGEST))

    def _draw(self, full: bool) -> _Drawn:
        pose, expression = self._motion()
        if self._panel.mode.value == COMPARE:
            return self._compare(pose, expression, full)
        if not self._panel.layers["avatar"].value:
            return _Drawn(np.full((2, 2, 3), 255, np.uint8), "")
        camera = self._camera(LARGEST if full else self._area)
        draw = self._painter.picture if full else self._painter.sketch
        began = time.monotonic()
        image = draw(camera, pose, expression)
        took = time.monotonic() - began
        return _Drawn(image, f"{camera.width} x {camera.height}, {1000 * took:.0f} ms")

    def _compare(self, pose: HeadPose, expression: NDArray[np.float32], full: bool) -> _Drawn:
        """Photo, avatar and error, as the chosen camera sees them."""
        seen, name = self._client.camera, self._panel.camera.value
        camera, view = self._subject.dataset.cameras[name], self._moment.views.get(name)
        draw = self._painter.picture if full else self._painter.sketch
        avatar = draw(camera, pose, expression)
        if view is None:
            pictures, facts = {"avatar": avatar}, f"Camera {name} has no photo of this frame."
        else:
            photo = self._subject.dataset.over_white(view)
            pictures = {"photo": photo, "avatar": avatar, "error": heat_map(photo, avatar)}
            inside = self._subject.dataset.inside(view)
            value = psnr(photo, avatar, inside)
            facts = f"PSNR {value:.1f} dB over the whole picture"
        width, height = max(seen.image_width, 300), max(seen.image_height, 200)
        return _Drawn(side_by_side(pictures, width, height), facts)

    def _send(self, drawn: _Drawn, quality: int) -> None:
        self._client.scene.set_background_image(drawn.image, format="jpeg", jpeg_quality=quality)
        self._panel.facts.content = drawn.facts

    def _show_layers(self, moving: bool) -> None:
        pose, expression = self._motion()
        comparing = self._panel.mode.value == COMPARE
        for name, box in self._panel.layers.items():
            if name == "avatar" or (name == "Gaussians" and moving):
                continue
            if box.value and not comparing:
                self._layers.show(
                    name, pose, expression, lambda: self._painter.gaussians(pose, expression)
                )
            else:
                self._layers.hide(name)


def _put(control: Any, value: object) -> None:
    """Set a control; viser's types hide that one can."""
    control.value = value
