"""What leaves the house: plain 3DGS read by another library, a face with morph targets, a page that
a browser draws as Python does; and what is said when there is nothing to export."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import gltflib
import gsply
import numpy as np
import pytest
import torch
from playwright.sync_api import Page
from typer.testing import CliRunner, Result

from flows import export as flow
from flows.cli import app
from gha_core.artifacts.images import decode_image
from gha_core.avatar.head import GaussianHead
from gha_core.avatar.initialise import TrackedFace
from gha_core.cameras import Camera, look_at
from gha_core.evaluation.metrics import psnr
from gha_core.export import baking, fit, loss, ply, splats, spz, targets
from gha_core.export import page as web
from gha_core.export.face import vertex_colours, write_glb
from gha_core.export.splats import Splats
from gha_core.pose import HeadPose

ROOT = Path(__file__).parents[1]
EVERYWHERE = np.ones((64, 64), bool)


def camera(size: int = 64, distance: float = 2.5) -> Camera:
    """In front of the stage, for heads in head lengths."""
    K = np.array([[1.5 * size, 0, size / 2], [0, 1.5 * size, size / 2], [0, 0, 1]])
    w2c = look_at(np.array([0, 0, distance]), np.zeros(3), np.array([0, 1.0, 0]))
    return Camera("front", K, w2c, size, size)


def picture(shown: Splats, seen_by: Camera | None = None) -> np.ndarray:
    one = seen_by or camera()
    K, w2c = torch.from_numpy(one.K).float(), torch.from_numpy(one.w2c).float()
    image, _ = shown.render(K, w2c, one.width, one.height, torch.ones(3))
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def cloud(count: int = 300, seed: int = 0, shiny: bool = False) -> Splats:
    random = torch.Generator().manual_seed(seed)
    return Splats(
        torch.randn(count, 3, generator=random) * torch.tensor([0.3, 0.2, 0.1]),
        torch.nn.functional.normalize(torch.randn(count, 4, generator=random)),
        0.02 + 0.1 * torch.rand(count, 3, generator=random),
        torch.rand(count, generator=random),
        torch.rand(count, 3, generator=random),
        0.4 * torch.rand(count, 3, 3, generator=random) - 0.2 if shiny else None,
    )


# Plain 3DGS --------------------------------------------------------------------------------------


def read_back(data: gsply.GSData) -> Splats:
    """What another library found in a file, in its own words of 3DGS."""
    columns = (data.means, data.quats, data.scales, data.opacities, data.sh0)
    means, quaternions, scales, opacities, colours = (
        torch.from_numpy(np.array(values, np.float32)) for values in columns
    )
    colours = colours.reshape(-1, 3) * ply.SH_C0 + 0.5
    opacities = torch.sigmoid(opacities.ravel())
    harmonics = None
    if data.shN is not None and data.shN.size:  # -C1 y, C1 z, -C1 x
        y, z, x = torch.from_numpy(np.array(data.shN, np.float32)).reshape(-1, 3, 3).unbind(1)
        harmonics = ply.SH_C1 * torch.stack([-x, -y, z], -1)
    return Splats(means, quaternions, scales.exp(), opacities, colours, harmonics)


@pytest.mark.parametrize("shiny", [False, True])
def test_a_ply_comes_back_from_another_library(tmp_path: Path, shiny: bool) -> None:
    shown = cloud(shiny=shiny)
    ply.write_ply(tmp_path / "cloud.ply", shown)
    again = read_back(gsply.plyread(str(tmp_path / "cloud.ply")))
    # Files of this kind stand on their head: y down.
    assert psnr(picture(shown), picture(again.moved(ply.FLIP)), EVERYWHERE) > 45
    assert psnr(picture(shown), picture(again), EVERYWHERE) < 30
    if shiny:
        dull = replace(shown, harmonics=None)
        assert psnr(picture(shown), picture(dull), EVERYWHERE) < 30


@pytest.mark.parametrize("shiny", [False, True])
def test_an_spz_comes_back_from_another_library(tmp_path: Path, shiny: bool) -> None:
    shown = cloud(shiny=shiny)
    spz.write_spz(tmp_path / "cloud.spz", shown)
    again = read_back(gsply.read_spz(str(tmp_path / "cloud.spz")))
    assert psnr(picture(shown), picture(again), EVERYWHERE) > 35
    assert len(again) == int((shown.opacities >= splats.SMALLEST_OPACITY).sum())


def test_equal_gaussians_give_equal_bytes(tmp_path: Path) -> None:
    for name, write in (("a.ply", ply.write_ply), ("a.spz", spz.write_spz)):
        write(tmp_path / name, cloud())
        write(tmp_path / f"again_{name}", cloud())
        assert (tmp_path / name).read_bytes() == (tmp_path / f"again_{name}").read_bytes()


def test_upright_gaussians_are_the_same_ones_and_hardly_turned() -> None:
    shown = cloud(2000)
    upright = shown.upright()
    assert upright.quaternions[:, 0].min() > 0.85
    for one, other in zip(_covariances(shown), _covariances(upright), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def _covariances(of: Splats) -> torch.Tensor:
    axes = splats.quaternions.to_matrix(of.quaternions) * of.scales[:, None]
    return axes @ axes.transpose(1, 2)


def test_moving_there_and_back_changes_nothing() -> None:
    pose = HeadPose(np.array([0.3, -1.0, 0.5]), np.array([1.0, 2.0, 3.0]), 0.2)
    shown = cloud()
    again = shown.moved(pose).moved(splats.inverse(pose))
    torch.testing.assert_close(again.means, shown.means, atol=1e-5, rtol=0)
    torch.testing.assert_close(_covariances(again), _covariances(shown), atol=1e-6, rtol=0)


# A subject ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_artifacts: Path) -> Path:
    """A project with one subject, whose artifacts are links."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "data" / "subjects" / "tiny"
    folder.mkdir(parents=True)
    for stage in tiny_artifacts.iterdir():
        (folder / stage.name).symlink_to(stage)
    (root / ".dvc").mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root)
    (root / "subjects.yaml").write_text(
        "subjects:\n  tiny:\n    capture: data/captures/tiny\n    format: auto\n"
        "    splits: {test_sequences: [FREE]}\n"
    )
    return root


@pytest.fixture(scope="module")
def source(project: Path) -> flow.Source:
    with chdir(project):
        made = flow.Source("tiny")
        assert made.dataset  # read while it can be found
        return made


def gha(project: Path, *arguments: str) -> Result:
    with chdir(project):
        return CliRunner().invoke(app, ["export", "tiny", *arguments])


def test_fitted_colours_are_nearer_to_the_full_render_from_views_that_were_not_fitted(
    source: flow.Source,
) -> None:
    avatar, pose = source.avatar, source.mean_pose
    expression = source.motions[2][1]
    made = [
        targets.target(avatar, shot)
        for shot in targets.shots(
            source.cameras, [(pose, expression)], 16, np.random.default_rng(0)
        )
    ]
    start = splats.of_frame(avatar.head, pose, torch.from_numpy(expression))
    start = replace(start, colours=0.8 * start.colours)
    fitted = fit.fit(start, made[:12], steps=40)
    assert loss.likeness(fitted, made[12:]) > loss.likeness(start, made[12:]) + 6
    torch.testing.assert_close(fitted.means, start.means)


def test_a_camera_that_is_carried_around_still_sees_the_head_in_the_same_place() -> None:
    centre = np.array([0.1, 0.2, 0.3])
    before = camera()
    after = targets.around(before, centre, yaw=20, pitch=-7)
    np.testing.assert_allclose(after.project(centre), before.project(centre))
    distances = [np.linalg.norm(each.centre - centre) for each in (before, after)]
    assert distances[0] == pytest.approx(distances[1])
    cosine = after.forward @ before.forward
    assert np.degrees(np.arccos(cosine)) == pytest.approx(21, abs=1)


# The face ----------------------------------------------------------------------------------------


def test_another_library_reads_the_face_and_its_morph_targets(
    source: flow.Source, tmp_path: Path
) -> None:
    face = TrackedFace.load(source.folder["tracking"])
    colours = vertex_colours(source.avatar, face, source.cameras, source.mean_pose)
    write_glb(tmp_path / "face.glb", face, colours, 0.25, "CC0")
    model = gltflib.GLTF.load(str(tmp_path / "face.glb"), load_file_resources=True).model
    blob = gltflib.GLTF.load(str(tmp_path / "face.glb")).get_glb_resource().data

    def vectors(number: int) -> np.ndarray:
        accessor = model.accessors[number]
        assert (accessor.type, accessor.componentType) == ("VEC3", gltflib.ComponentType.FLOAT)
        view = model.bufferViews[accessor.bufferView]
        data = np.frombuffer(blob, "<f4", 3 * accessor.count, view.byteOffset)
        return data.reshape(-1, 3)

    (mesh,) = model.meshes
    (primitive,) = mesh.primitives
    assert mesh.extras["targetNames"] == list(face.expression_names)
    np.testing.assert_allclose(vectors(primitive.attributes.POSITION), 0.25 * face.vertices)
    assert len(primitive.targets) == len(face.basis)
    for target, basis in zip(primitive.targets, face.basis, strict=True):
        moved = target["POSITION"] if isinstance(target, dict) else target.POSITION
        np.testing.assert_allclose(vectors(moved), 0.25 * basis, atol=1e-7)
    assert vectors(primitive.attributes.COLOR_0).max() <= 1
    np.testing.assert_allclose(
        np.linalg.norm(vectors(primitive.attributes.NORMAL), axis=1), 1, atol=1e-5
    )
    lips, lids = (colours[face.regions[name].numpy()].mean(0) for name in ("lips", "face"))
    assert lips[0] - lips[1] > lids[0] - lids[1], "lips are redder than skin"


# Baking ------------------------------------------------------------------------------------------


def test_what_carries_the_gaussians_is_baked_exactly(source: flow.Source) -> None:
    """An avatar whose networks add nothing: everything that is left is exact, also beyond what
    training covered."""
    head = GaussianHead(source.avatar.head.config)
    head.load_state_dict(source.avatar.head.state_dict())
    for name, parameter in head.named_parameters():
        if re.search(r"(colour|deformation|attributes)_\w+\.layers\.\d+\.", name):
            torch.nn.init.zeros_(parameter)
    baked = baking.bake(head, source.motions)
    pose, _ = source.motions[1]
    expression = torch.linspace(0, 1.5, 52)
    direct = splats.of_frame(head, pose, expression)
    through = baked.splats(expression, head.condition(pose)).moved(pose)
    torch.testing.assert_close(through.means, direct.means, atol=2e-5, rtol=0)
    torch.testing.assert_close(_covariances(through), _covariances(direct), atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(through.opacities, direct.opacities, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def stored(source: flow.Source) -> web.Stored:
    head = source.avatar.head
    seen = [
        (shot, head.condition(shot.pose), targets.target(source.avatar, shot))
        for shot in targets.shots(source.cameras, source.motions, 24, np.random.default_rng(0))
    ]
    return web.Stored.of(baking.refine(baking.bake(head, source.motions), seen, steps=60))


def test_the_baked_avatar_looks_like_the_full_one_on_held_out_views(
    source: flow.Source, stored: web.Stored
) -> None:
    from gha_core.evaluation.regions import TrackedFace as Regions

    views = source.dataset.test[::8]
    shown = baking.BakedAvatar(stored.as_shown(), source.avatar.head)
    face = Regions.load(source.folder["tracking"])
    full, less, between = loss.against_truth(source.avatar, shown, source.dataset, face, views)
    assert less > full - 1
    assert between > full


def test_bytes_keep_numbers_to_half_a_step() -> None:
    values = torch.randn(4, 50, 3) * torch.tensor([1.0, 1e-4, 0])
    again = web.Bytes.of(values).values()
    step = values.abs().amax(1, keepdim=True) / 127
    assert ((again - values).abs() <= 0.501 * step + 1e-12).all()


def test_every_expression_has_a_group() -> None:
    found = web.groups(["jawOpen", "eyeBlinkLeft", "smirk", "browInnerUp", "tongueOut"])
    assert sorted(index for group in found for index in group["members"]) == [0, 1, 2, 3, 4]
    assert found[0] == {"name": "Jaw", "members": [0, 4]}
    assert found[-1] == {"name": "Other", "members": [2]}


# The page ----------------------------------------------------------------------------------------


def shot(page: Page) -> np.ndarray:
    """The canvas alone, once everything that was asked for is drawn."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    page.wait_for_selector("body[data-state=resting]")
    style = "main > :not(canvas) { visibility: hidden }"
    return decode_image(page.locator("canvas").screenshot(style=style))


def slide(page: Page, name: str, value: float) -> None:
    page.locator(f'input[data-name="{name}"]').fill(str(value))


@pytest.mark.parametrize("renderer", ["cpu", "webgl"])
def test_the_page_draws_what_python_draws_and_answers(
    source: flow.Source,
    stored: web.Stored,
    page: Page,
    tmp_path: Path,
    screenshots: Path,
    renderer: str,
) -> None:
    first = web.first_view(source.cameras[0], source.mean_pose)
    clip = flow.clips(source)[0]
    names = source.avatar.expression_names
    text = web.render_page("tiny", "Licences: CC0-1.0.", stored, names, [clip], first)
    assert not re.search(r'(?:src|href)="(?!data:|#)|https?://', text), "nothing is loaded"
    (tmp_path / "tiny.html").write_text(text)
    page.goto((tmp_path / "tiny.html").as_uri() + f"#{renderer}")
    page.wait_for_selector("body[data-pictures]")
    page.locator("#background").select_option("white")
    page.screenshot(path=screenshots / f"export_{renderer}.png")

    neutral = shot(page)
    height, width = neutral.shape[:2]
    seen_by = _stage_camera(first, width, height)
    rest, jaw = torch.zeros(len(names)), torch.zeros(len(names))
    jaw[names.index("jawOpen")] = 1
    drawn = picture(stored.as_shown().splats(rest, torch.zeros(6)), seen_by)
    inside = (drawn < 250).any(2)
    assert psnr(drawn, neutral, inside) > 33

    slide(page, "jawOpen", 1)
    opened = shot(page)
    drawn = picture(stored.as_shown().splats(jaw, torch.zeros(6)), seen_by)
    assert psnr(drawn, opened, inside) > 33
    change = np.abs(opened.astype(int) - neutral).mean(2)
    rows = np.nonzero(inside.any(1))[0]
    middle = (rows[0] + rows[-1]) // 2
    assert change[middle:].mean() > 5 * change[: middle - 20].mean()

    slide(page, "turn", 20)
    turned = shot(page)
    assert np.abs(turned.astype(int) - opened).mean() > 1
    page.locator("#reset").click()
    assert np.abs(shot(page).astype(int) - neutral).max() <= 4  # sums of changes

    page.mouse.move(200, 200)
    page.mouse.down()
    page.mouse.move(260, 180, steps=3)
    page.mouse.up()
    assert np.abs(shot(page).astype(int) - neutral).mean() > 1
    page.locator("#play").click()
    page.wait_for_function("() => Number(document.querySelector('#timeline').value) > 0.2")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"


def _stage_camera(first: dict, width: int, height: int) -> Camera:
    """The page's first camera, for heads in head lengths."""
    yaw, pitch = first["yaw"], first["pitch"]
    direction = [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]
    target = np.array(first["target"])
    eye = target + first["distance"] * np.array(direction)
    focal = first["focal"] * height
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera("page", K, look_at(eye, target, np.array([0, 1.0, 0])), width, height)


# The command -------------------------------------------------------------------------------------


def test_the_command_writes_every_format(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("FRAME_STEPS", 3), ("BAKED_STEPS", 3), ("FRAME_TARGETS", 3), ("BAKED_TARGETS", 3),
        ("LOSS_VIEWS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(flow, name, value)
    done = gha(project, "--frame", "FREE:1", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"tiny_FREE_00001.ply", "tiny_FREE_00001.spz", "tiny.glb", "tiny.html"}
    assert re.search(
        r"baked: \S+ dB PSNR of the head on 2 held-out views, \S+ dB in full", done.output
    )
    assert "facemesh: Apache-2.0" in (tmp_path / "tiny.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "fbx"], "no format 'fbx'; known are: ply, spz, glb, html"),
        (["--frame", "FREE:99"], "no tracked frame 'FREE:99'. It is neutral, or one of"),
        (["--frame", "FREE"], "FREE:0 to FREE:"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(
    project: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = gha(project, *arguments, "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert sentence in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda avatar: shutil.rmtree(avatar), "tiny has no avatar yet. Run: gha run tiny"),
        (lambda avatar: _edit(avatar, schema_version=99), "schema version 99"),
        (lambda avatar: _edit(avatar, config={"gaussians": 10**12}), "Run the avatar stage again"),
        (lambda avatar: _cut(avatar), "does not fit its description"),
        (lambda avatar: (avatar / "avatar.json").write_text("{"), "is not valid JSON"),
        (lambda avatar: (avatar / "avatar.json").write_text("[]"), "Run the avatar stage again"),
    ],
)
def test_damaged_avatars_are_refused_in_a_sentence(
    project: Path, tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    copy = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    avatar = copy / "data" / "subjects" / "tiny" / "avatar"
    sound = avatar.resolve()
    avatar.unlink()
    shutil.copytree(sound, avatar)
    harm(avatar)
    done = gha(copy, "--output", str(tmp_path / "out"))
    assert done.exit_code == 2, done.exception
    assert sentence in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def _edit(avatar: Path, **values: object) -> None:
    description = json.loads((avatar / "avatar.json").read_text())
    if "config" in values:
        values["config"] = {**description["config"], **values["config"]}  # type: ignore[dict-item]
    (avatar / "avatar.json").write_text(json.dumps({**description, **values}))


def _cut(avatar: Path) -> None:
    content = (avatar / "avatar.safetensors").read_bytes()
    (avatar / "avatar.safetensors").write_bytes(content[: len(content) // 2])


def test_a_failure_while_writing_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_text("earlier")

    def fail(to: Path) -> None:
        to.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        flow.written(path, fail, "")
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
