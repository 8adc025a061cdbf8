"""The timings: a script that runs, and the report that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_quick_benchmark_writes_its_cases(tmp_path: Path) -> None:
    file = tmp_path / "mlp.json"
    command = [sys.executable, "-m", "benchmarks.mlp", "--quick", "--threads", "1", "--json", file]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (case,) = json.loads(file.read_text())["cases"]
    assert {"name", "ours_ms", "twin_ms", "peers", "floor_ms"} <= case.keys()
    assert 0 < case["floor_ms"] < case["ours_ms"]
    low, high = case["quartiles_ms"]["ours"]
    assert low <= case["ours_ms"] <= high
