"""The viewer, as a person uses it: in a browser."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page
from safetensors.torch import load_file, save_file
from tiny_avatar import NAME
from typer.testing import CliRunner

from flows.cli import app
from flows.view import view
from gha_core.reenactment.coefficients import ARKIT
from gha_core.viewer.comparison import heat_map, side_by_side
from gha_core.viewer.panel import by_region
from gha_core.viewer.server import serving
from gha_core.viewer.subject import Subject

Picture = NDArray[np.uint8]


@pytest.fixture
def project(tiny_project: Path) -> Path:
    return tiny_project


@pytest.fixture(scope="module")
def address(tiny_project: Path) -> Iterator[str]:
    subject = Subject.load(NAME, tiny_project / "data" / "subjects" / NAME)
    with serving(subject, port=free_port()) as address:
        yield address


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


# In the browser ----------------------------------------------------------------------------------


def shot(page: Page) -> Picture:
    """What is drawn, left of the panel and below what viser says of software WebGL."""
    png = page.screenshot(clip={"x": 0, "y": 180, "width": 660, "height": 520})
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(np.uint8)


def settled(page: Page, before: Picture | None = None) -> Picture:
    """The picture, once it differs from ``before`` and stays as it is."""
    last = shot(page)
    for _ in range(60):
        page.wait_for_timeout(400)  # longer than the viewer waits until it draws in full
        now = shot(page)
        another = now.std() > 5 if before is None else difference(before, now) > 0.1
        if another and np.array_equal(now, last):
            return now
        last = now
    raise AssertionError("the picture does not come to rest, or did not change")


def difference(one: Picture, other: Picture) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def write(page: Page, slider: str, value: str) -> None:
    """Write into the box beside a slider."""
    box = page.locator(f"//label[.='{slider}']/following::input[@inputmode='decimal'][1]")
    box.fill(value)
    box.press("Enter")


def test_a_person_moves_the_avatar(page: Page, address: str, screenshots: Path) -> None:
    page.goto(address)
    first = settled(page)
    page.screenshot(path=screenshots / "viewer.png")

    tab(page, "Face")
    write(page, "jawOpen", "1")
    opened = settled(page, first)
    page.screenshot(path=screenshots / "viewer_jaw_open.png")
    rows = np.abs(opened.astype(int) - first).mean((1, 2))
    chin, brow = rows[len(rows) // 2 :].mean(), rows[: len(rows) // 4].mean()
    assert chin > 1.5 * brow, "the mouth region changes, the brow hardly"
    page.get_by_role("button", name="Neutral").click()
    assert difference(settled(page, opened), opened) > 0.3

    before = shot(page)
    page.mouse.move(330, 400)
    page.mouse.down()
    page.mouse.move(480, 420, steps=6)
    page.mouse.up()
    settled(page, before)
    page.screenshot(path=screenshots / "viewer_orbit.png")

    tab(page, "Pose")
    before = shot(page)
    write(page, "yaw", "40")
    settled(page, before)

    tab(page, "Layers")
    page.get_by_label("avatar").uncheck()
    for layer in ("Gaussians", "tracking mesh"):
        before = shot(page)
        page.get_by_label(layer).check()
        settled(page, before)
    for layer in ("landmarks", "geometry mesh", "cameras"):
        page.get_by_label(layer).check()
    page.screenshot(path=screenshots / "viewer_layers.png")


def test_a_sequence_plays_beside_the_photo(page: Page, address: str, screenshots: Path) -> None:
    page.goto(address)
    orbit = settled(page)
    page.locator("//label[.='view']/following::input[1]").click()
    page.get_by_role("option", name="beside the photo").click()
    compared = settled(page, orbit)
    page.screenshot(path=screenshots / "viewer_comparison.png")
    assert (compared.max(-1) < 40).mean() > 0.05, "the heat-map is dark where nothing is wrong"
    assert "PSNR" in page.locator("body").inner_text()

    frame = page.locator("//label[.='frame']/following::input[@inputmode='decimal'][1]")
    seen = {frame.input_value()}
    page.get_by_label("play").check()
    for _ in range(50):
        page.wait_for_timeout(50)
        seen.add(frame.input_value())
    page.get_by_label("play").uncheck()
    assert seen == {"0", "1"}, "two frames, round and round"

    with page.expect_download() as download:
        page.get_by_role("button", name="Screenshot").click()
    png = cv2.imread(str(download.value.path()))
    assert png.shape[0] > 300
    assert png.std() > 5


# The command -------------------------------------------------------------------------------------


def refused(project: Path, *arguments: str) -> str:
    with chdir(project):
        done = CliRunner().invoke(app, ["view", NAME, *arguments], env={"COLUMNS": "300"})
    assert done.exit_code == 2, done.output
    return done.output


def test_it_says_where_it_is_and_who_can_see_it(project: Path) -> None:
    said: list[str] = []

    def end(_: str) -> None:
        signal.raise_signal(signal.SIGINT)

    with chdir(project):
        view(NAME, "127.0.0.1", port := free_port(), said.append, end)
        assert said == [f"ball: http://localhost:{port}  (Ctrl-C ends)"]
        view(NAME, "0.0.0.0", free_port(), said.append, end)
        assert "Everyone who can reach 0.0.0.0 can watch" in said[1]


def test_a_port_in_use_is_a_sentence(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 is in use" in refused(project, "--port", str(port))
    assert "cannot be listened at" in refused(project, "--host", "192.0.2.1")


def test_a_missing_stage_is_a_sentence(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    shutil.rmtree(copy / "data" / "subjects" / NAME / "geometry")
    assert "ball has no geometry yet. Run: gha run ball" in refused(copy)


def newer(avatar: Path) -> None:
    edit(avatar, schema_version=99)


def cut(avatar: Path) -> None:
    weights = (avatar / "avatar.safetensors").read_bytes()
    (avatar / "avatar.safetensors").write_bytes(weights[: len(weights) // 2])


def enormous(avatar: Path) -> None:
    config = json.loads((avatar / "avatar.json").read_text())["config"]
    edit(avatar, config={**config, "gaussians": 10**12})


def incomplete(avatar: Path) -> None:
    edit(avatar, config={})


def of_text(avatar: Path) -> None:
    config = json.loads((avatar / "avatar.json").read_text())["config"]
    edit(avatar, config={**config, "width": "wide"})


def a_list(avatar: Path) -> None:
    (avatar / "avatar.json").write_text("[1]")


def lying(avatar: Path) -> None:
    """Its header announces more than there is."""
    length = (2**40).to_bytes(8, "little")
    (avatar / "avatar.safetensors").write_bytes(length + b"{}")


def smaller(avatar: Path) -> None:
    tensors = load_file(avatar / "avatar.safetensors")
    tensors["head.positions"] = tensors["head.positions"][:5].clone()
    save_file(tensors, avatar / "avatar.safetensors")


def edit(avatar: Path, **values: object) -> None:
    about = json.loads((avatar / "avatar.json").read_text())
    (avatar / "avatar.json").write_text(json.dumps({**about, **values}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (newer, "schema version 99, this code reads version 2. Update gha"),
        (cut, "does not fit its description"),
        (enormous, "does not fit its description"),
        (incomplete, "does not describe an avatar"),
        (of_text, "does not describe an avatar"),
        (a_list, "schema version None"),
        (lying, "does not fit its description"),
        (smaller, "does not fit its description"),
    ],
)
def test_a_damaged_avatar_is_a_sentence(
    spoil: Callable[[Path], None], sentence: str, project: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(project, tmp_path / "copy")
    spoil(copy / "data" / "subjects" / NAME / "avatar")
    assert sentence in refused(copy)


# What is shown -----------------------------------------------------------------------------------


def test_all_coefficients_have_a_region_of_the_face() -> None:
    regions = by_region(ARKIT)
    assert sorted(name for names in regions.values() for name in names) == sorted(ARKIT)
    assert list(regions) == ["gaze", "eyes", "brows", "cheeks and nose", "jaw", "mouth", "tongue"]
    assert by_region(("jawOpen", "psi_1")) == {"jaw": ["jawOpen"], "other": ["psi_1"]}


def test_the_heat_map_is_black_where_nothing_is_wrong() -> None:
    one = np.full((4, 6, 3), 100, np.uint8)
    other = one.copy()
    other[0, 0] = 200
    found = heat_map(one, other).astype(int).sum(-1)
    assert found[0, 0] > 400
    assert np.delete(found.ravel(), 0).max() < 20


@pytest.mark.parametrize(("width", "height", "columns"), [(900, 300, 3), (300, 900, 1)])
def test_pictures_stand_as_large_as_they_fit(width: int, height: int, columns: int) -> None:
    pictures = {str(i): np.full((50, 50, 3), 10, np.uint8) for i in range(3)}
    sheet = side_by_side(pictures, width, height)
    assert sheet.shape == (height, width, 3)
    dark = (sheet == 10).all(-1)
    assert dark.sum() > 0.7 * width * height
    assert (np.diff(np.flatnonzero(dark.any(1))) > 1).sum() == 3 // columns - 1
