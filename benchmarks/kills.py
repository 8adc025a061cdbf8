"""Kill a training of the avatar at random moments, resume it each time, compare the bytes.

    python -m benchmarks.kills [--kills 10] [--seed 0] [--quick] [--json FILE]
    python -m benchmarks.kills --artifacts data/subjects/demo --steps 300

Without artifacts the subject is that of tests/test_avatar.py: a ball with an eye. A kill falls some
random milliseconds after a random step begins, so that some fall into the writing of a checkpoint.
Gaussians are relocated on the way. Every file that the stage writes must equal that of a training
which nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

QUICK_KILLS, STEPS, RELOCATIONS = 3, 200, 4
LATEST = 0.3  # seconds after the beginning of a step

CHILD = """
import sys
from pathlib import Path
import torch
from gha_core.avatar.samples import TrainingViews
from benchmarks.kills import train

plain = TrainingViews.at_step
def told(self, step, views):
    print("step", step, flush=True)
    return plain(self, step, views)
TrainingViews.at_step = told
torch.set_num_threads(int(sys.argv[1]))
train(*map(Path, sys.argv[2:5]), int(sys.argv[5]), sys.argv[6] == "own")
"""


def train(artifacts: Path, work: Path, out: Path, steps: int, own: bool) -> None:
    """Run the avatar stage; ``own`` tells whether the artifacts are a user's."""
    from gha_core.splits import Splits
    from tasks import avatar
    from tasks.stage import Inputs

    changes = {"steps": steps, "relocations": RELOCATIONS, "checkpoint_seconds": 0.0}
    if own:
        params, splits = avatar.Params(**changes), Splits()  # type: ignore[arg-type]
    else:
        import test_avatar

        params, splits = test_avatar.TINY.model_copy(update=changes), test_avatar.SPLITS
    avatar.run(Inputs("any", artifacts, "auto", artifacts, work, splits), params, out)


def start(artifacts: Path, folder: Path, steps: int, own: bool, threads: int) -> subprocess.Popen:
    work, out = folder / "work", folder / "out"
    for each in (work, out):
        each.mkdir(parents=True, exist_ok=True)
    kind = "own" if own else "ball"
    values = [str(threads), str(artifacts), str(work), str(out), str(steps), kind]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *values],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def killed_at(process: subprocess.Popen, step: int, delay: float) -> int | None:
    """Kill the training ``delay`` seconds after it begins ``step``, or later if it resumed later;
    the last step that it began. None if it ended before."""
    last = None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            last = int(line.split()[1])
            if last >= step:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
    return last if process.wait() == -signal.SIGKILL else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--artifacts", type=Path, metavar="FOLDER", help="a subject's own")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    kills = QUICK_KILLS if given.quick else given.kills
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifacts, own = given.artifacts, given.artifacts is not None
        if not own:
            import test_avatar

            artifacts = folder / "ball"
            test_avatar._make_subject(artifacts)
        arguments = (given.steps, own, given.threads)
        whole = start(artifacts, folder / "whole", *arguments)
        whole.communicate()
        if whole.returncode:
            sys.exit("The undisturbed training failed.")
        moments = []
        for step in sorted(rng.randrange(given.steps) for _ in range(kills)):
            process = start(artifacts, folder / "cut", *arguments)
            last = killed_at(process, step, rng.uniform(0, LATEST))
            moments.append(last)
            print("ended before it could be killed" if last is None else f"killed in step {last}")
        start(artifacts, folder / "cut", *arguments).communicate()
        files = sorted(path.name for path in (folder / "whole" / "out").iterdir())
        equal = {
            file: (folder / "cut" / "out" / file).read_bytes()
            == (folder / "whole" / "out" / file).read_bytes()
            for file in files
        }
    result = {"kills": [moment for moment in moments if moment is not None], "equal": equal}
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
