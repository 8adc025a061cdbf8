"""Tables keep their schema both ways; stage folders and videos appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gha_core.artifacts import schemas
from gha_core.artifacts.images import decode_image, decode_matte, encode_jpeg, encode_png
from gha_core.artifacts.stage_folder import read_json, write_json, writing
from gha_core.artifacts.tables import TableWriter, read_rows, read_table, write_table
from gha_core.artifacts.videos import write_video
from gha_core.capture.video import probe, read_frames
from gha_core.errors import ArtifactError


def reject(timestep: int, camera: str = "a", reason: str = "blurred") -> dict[str, object]:
    return {
        "subject": "s",
        "sequence": "FREE",
        "timestep": timestep,
        "camera": camera,
        "reason": reason,
    }


def test_rows_come_back_sorted_by_key(tmp_path: Path) -> None:
    path = tmp_path / "rejects.parquet"
    assert write_table(path, schemas.REJECTS, [reject(10), reject(9), reject(9, "b")]) == 3
    keys = [(row["timestep"], row["camera"]) for row in read_rows(path, schemas.REJECTS)]
    assert keys == [(9, "a"), (9, "b"), (10, "a")]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, schemas.REJECTS, [reject(2), reject(1)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "row",
    [
        {**reject(1), "reason": None},
        {**reject(1), "comment": "unknown column"},
        {**reject(1), "timestep": "one"},
    ],
)
def test_a_row_that_does_not_fit_is_refused(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match=r"rejects\.parquet: a row does not fit"):
        write_table(tmp_path / "rejects.parquet", schemas.REJECTS, [row])


def test_unsorted_and_repeated_rows_are_refused(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "t.parquet", schemas.REJECTS) as writer:
        writer.write(reject(2))
        for row in (reject(2), reject(1)):
            with pytest.raises(ArtifactError, match="sorted"):
                writer.write(row)


def test_images_are_grouped_by_timestep(tmp_path: Path) -> None:
    rows = [
        {
            "subject": "s",
            "sequence": "FREE",
            "timestep": timestep,
            "camera": camera,
            "alpha": b"png",
            "width": 2,
            "height": 2,
        }
        for timestep in range(3)
        for camera in ("a", "b")
    ]
    write_table(tmp_path / "alpha.parquet", schemas.ALPHA, rows)
    assert pq.ParquetFile(tmp_path / "alpha.parquet").num_row_groups == 3


def test_a_foreign_table_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "frames.parquet"
    with pytest.raises(ArtifactError, match="does not exist"):
        read_table(path, schemas.FRAMES)
    path.write_bytes(b"PAR1 but truncated")
    with pytest.raises(ArtifactError, match="not a readable Parquet"):
        read_table(path, schemas.FRAMES)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ArtifactError, match="schema version None"):
        read_table(path, schemas.FRAMES)


def test_images_survive_encoding() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    assert np.array_equal(decode_image(encode_png(image)), image)
    assert np.array_equal(decode_matte(encode_png(image[..., 0])), image[..., 0])
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(decode_image(encode_jpeg(red)).astype(int) - red).max() <= 3
    with pytest.raises(ArtifactError, match="not an image"):
        decode_image(b"nonsense")


def test_a_failed_stage_leaves_the_earlier_artifact(tmp_path: Path) -> None:
    out = tmp_path / "avatar"
    with writing(out) as folder:
        write_json(folder / "summary.json", {"frames": 1})

    def fail() -> None:
        with writing(out) as folder:
            write_json(folder / "summary.json", {"frames": 2})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read_json(out / "summary.json") == {"frames": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["avatar"]


def test_a_finished_stage_replaces_the_earlier_artifact_whole(tmp_path: Path) -> None:
    out = tmp_path / "avatar"
    for name in ("old.json", "new.json"):
        with writing(out) as folder:
            write_json(folder / name, {})
    assert [path.name for path in out.iterdir()] == ["new.json"]


def test_video_has_every_frame_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    frames = [np.full((33, 47, 3), level, np.uint8) for level in (20, 90, 160, 230)]
    assert write_video(path, iter(frames), rate=25) == 4
    assert probe(path).frames == 4
    for (_, decoded), frame in zip(read_frames(probe(path)), frames, strict=True):
        assert decoded is not None
        assert decoded.shape == (34, 48, 3)
        assert abs(float(decoded.mean()) - frame.mean()) < 4


def test_an_empty_video_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no frame"):
        write_video(tmp_path / "clip.mp4", iter([]), rate=25)
    assert not list(tmp_path.iterdir())
