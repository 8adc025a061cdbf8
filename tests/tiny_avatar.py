"""A project with one subject, ball, whose avatar is trained in seconds: see test_avatar."""

from __future__ import annotations

from pathlib import Path

from test_avatar import NAMES, SIZE, TINY, _inputs, _make_subject

from tasks import avatar

__all__ = ["NAME", "NAMES", "SIZE", "make_project"]
NAME = "ball"


def make_project(root: Path) -> Path:
    """Fill ``root`` with a project; returns the folder of the subject's artifacts."""
    artifacts = root / "data" / "subjects" / NAME
    artifacts.mkdir(parents=True)
    _make_subject(artifacts)
    out = artifacts / "avatar"
    out.mkdir()
    avatar.run(_inputs(artifacts, root / "work"), TINY, out)
    (root / ".dvc").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "subjects.yaml").write_text(
        f"subjects:\n  {NAME}: {{capture: nowhere, format: generic}}\n"
    )
    return artifacts
