"""Run one stage of one subject: ``python -m tasks STAGE SUBJECT``, in the project's folder.

This is the command of every stage in ``dvc.yaml``. It resolves the parameters, holds the stage's
lock, lets the stage write beside its output folder and renames when it is complete.

Exit status: 0 done; 2 a mistake in capture, parameters or artifacts (one sentence on stderr;
running again without changing something is pointless); 75 out of memory (worth another try);
1 a bug of ours, with traceback.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gha_core.artifacts import schemas, stage_folder, tables
from gha_core.errors import ArtifactError, GhaError
from gha_core.memory import keep_freed_memory
from gha_core.splits import Splits
from tasks import work_folder
from tasks.origin import read_origin
from tasks.parameters import STAGES, find_subject, resolve
from tasks.stage import Inputs, Origin

USER_ERROR, TRY_AGAIN, INTERRUPTED = 2, 75, 130
THREADS_VARIABLE = "GHA_THREADS"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or {"-h", "--help"} & set(arguments):
        print(f"usage: python -m tasks STAGE SUBJECT\nstages: {', '.join(STAGES)}", file=sys.stderr)
        return USER_ERROR
    _die_with_dvc()
    keep_freed_memory()
    stage, subject = arguments
    try:
        run_stage(Path.cwd(), stage, subject)
    except GhaError as error:
        return _fail(str(error), USER_ERROR)
    except MemoryError as error:
        return _fail(f"{stage} ran out of memory. {error}", TRY_AGAIN)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate" not in str(error):
            raise
        return _fail(f"{stage} ran out of memory: {error}", TRY_AGAIN)
    except KeyboardInterrupt:
        return _fail(f"{stage} was interrupted.", INTERRUPTED)
    return 0


def run_stage(root: Path, stage: str, subject: str) -> None:
    """Run ``stage`` for ``subject`` in the project at ``root``; its folder appears when complete.

    Raises:
        GhaError: a mistake in capture, parameters or artifacts, or the stage runs already.
    """
    entry = find_subject(root, subject)
    resolved = resolve(root, stage, subject)
    artifacts = root / "data" / "subjects" / subject
    artifacts.mkdir(parents=True, exist_ok=True)
    upstream = [artifacts / name for name in STAGES[: STAGES.index(stage)]]
    threads = int(os.environ.get(THREADS_VARIABLE) or os.cpu_count() or 1)
    # Libraries read it when they are loaded, which the stage's import may do.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with _locked(artifacts / f".{stage}.lock", stage, subject):
        module = importlib.import_module(f"tasks.{stage}")
        inputs = Inputs(
            subject=subject,
            # Resolved, so that a stage sees the file's own name and not that of our link to it.
            capture=(root / "data" / "captures" / subject).resolve(),
            format=entry.format,
            artifacts=artifacts,
            work=work_folder.prepare(artifacts / f".{stage}.work", resolved, upstream),
            splits=resolved.splits,
            seed=resolved.seed,
            origin=read_origin(root, subject) if stage == "evaluation" else Origin(),
        )
        if stage != "ingest":
            _check_splits(artifacts / "ingest", resolved.splits)
        _seed(resolved.seed, threads)
        with stage_folder.writing(artifacts / stage) as out:
            module.run(inputs, resolved.params, out)
            if stage == "ingest":
                # Early, so that a held-out camera that does not exist costs no hours.
                _check_splits(out, resolved.splits)
        shutil.rmtree(artifacts / f".{stage}.work", ignore_errors=True)


def _check_splits(ingest: Path, splits: Splits) -> None:
    cameras = tables.read_table(ingest / "cameras.parquet", schemas.CAMERAS, ["camera"])
    frames = tables.read_table(ingest / "frames.parquet", schemas.FRAMES, ["sequence"])
    splits.check(
        cameras.column("camera").unique().to_pylist(),
        frames.column("sequence").unique().to_pylist(),
    )


def _seed(seed: int, threads: int) -> None:
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from the global generator
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(seed)
        torch.set_num_threads(threads)


@contextmanager
def _locked(path: Path, stage: str, subject: str) -> Iterator[None]:
    """Held by the process itself, so it ends with it however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{stage} of {subject} is being made by another process; wait for it to finish."
            ) from None
        yield


def _die_with_dvc() -> None:
    """No stage may go on writing when the `dvc repro` that started it is gone; gha sees to its own.

    Started from a shell by hand, it lives as any other command does.
    """
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)


def _fail(sentence: str, status: int) -> int:
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
