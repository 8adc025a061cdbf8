"""The Prefect server, and what it shows beside the runs: scores, previews, progress.

Those only if somebody runs it and looks at it: the temporary one that Prefect starts otherwise
hears nothing of this. No artifact is worth a failed stage, so errors there are dropped.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import cv2
import numpy as np

from flows.display import ARTIFACTS, score_table
from flows.stage_process import StageFailed, read_progress
from gha_core.artifacts.images import decode_image, encode_jpeg
from gha_core.errors import GhaError

EVERY = 5.0
"""Seconds between two looks at a stage's progress."""

WIDTH = 640
"""Pixels of a preview's width at most: it lies in the server's database."""


def in_use() -> bool:
    """Whether a Prefect server or Prefect Cloud is configured."""
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


def reach() -> None:
    """See that there is a server for the flows: the one that is configured, else a temporary one,
    which is started.

    Raises:
        GhaError: there is none.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    error: Exception | None
    try:
        with get_client(sync_client=True) as client:
            error = client.api_healthcheck()
    except RuntimeError as failure:  # the temporary one did not start in its time
        error = failure
    if error is None:
        return
    if in_use():
        raise GhaError(
            f"The Prefect server at {PREFECT_API_URL.value()} does not answer ({error}). Start it: "
            "prefect server start; or go on without: unset PREFECT_API_URL"
        )
    raise GhaError(
        f"Prefect's temporary server did not start ({error}). If the machine is very busy, try "
        "again later; see also: prefect server start"
    )


def show_scores(subjects: Sequence[str]) -> None:
    """The score table of ``subjects`` as an artifact of the flow run."""
    if in_use() and (table := score_table(subjects)):
        rows = [[str(cell) for cell in column.cells] for column in table.columns]
        heads = [str(column.header) for column in table.columns]
        lines = [heads, ["---"] * len(heads), *zip(*rows, strict=True)]
        markdown = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        _create("create_markdown_artifact", markdown=markdown, key="scores")


def show_preview(name: str) -> None:
    """The preview of ``stage@subject``, if it is in this clone, as an artifact of the task run."""
    stage, _, subject = name.partition("@")
    path = ARTIFACTS / subject / stage / "preview.jpg"
    if in_use() and path.exists():
        with suppress(Exception):
            picture = base64.b64encode(_small(path.read_bytes())).decode()
            markdown = f"![{name}](data:image/jpeg;base64,{picture})"
            _create("create_markdown_artifact", markdown=markdown, key=_key("preview", name))


@contextmanager
def progress(name: str) -> Iterator[None]:
    """How far ``stage@subject`` is, as an artifact that moves while the block runs."""
    if not in_use():
        yield
        return
    # In percent, as the server's page shows it.
    artifact = _create("create_progress_artifact", progress=0.0, key=_key("progress", name))
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(name, artifact, stop), daemon=True)
    thread.start()
    try:
        yield
        _move(artifact, 100.0)
    finally:
        stop.set()
        thread.join()


def fail_deployment(errors: Sequence[str]) -> None:
    """Fail the flow run if a deployment started it and there are ``errors``.

    Raises:
        StageFailed: with all of them.
    """
    from prefect.runtime import deployment

    if errors and deployment.id:
        raise StageFailed("\n".join(errors))


def _follow(name: str, artifact: Any, stop: threading.Event) -> None:
    shown = 0.0
    while not stop.wait(EVERY):
        known = read_progress(name)
        if known and known.total and known.done != shown:
            shown = known.done
            _move(artifact, 100.0 * known.done / known.total)


def _move(artifact: Any, percent: float) -> None:
    from prefect.artifacts import update_progress_artifact

    if artifact is not None:
        with suppress(Exception):
            update_progress_artifact(artifact, progress=percent)


def _create(kind: str, **content: Any) -> Any:
    from prefect import artifacts

    create: Callable[..., Any] = getattr(artifacts, kind)
    with suppress(Exception):
        return create(**content)
    return None


def _key(what: str, name: str) -> str:
    """Prefect wants lower case, digits and dashes."""
    plain = "".join(c if c.isalnum() else "-" for c in name.lower())
    return f"{what}-{plain}"


def _small(picture: bytes) -> bytes:
    image = decode_image(picture)
    height, width = image.shape[:2]
    if width <= WIDTH:
        return picture
    size = (WIDTH, round(height * WIDTH / width))
    return encode_jpeg(cv2.resize(image, size, None, 0, 0, cv2.INTER_AREA).astype(np.uint8), 85)
