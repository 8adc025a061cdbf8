"""Frames per second of the capture reader, against FFmpeg alone; peak memory against length.

    python -m benchmarks.decode --json result.json

Rigs of videos as cameras write them (H.264, 8-bit) are read as ingest reads them, up to RGB arrays;
the peer is ``ffmpeg -f null`` on the same videos and cores, as many processes side by side as
videos, which decodes and converts nothing. Beside the frames per second of the clock, CPU
milliseconds per frame are given, which a busy machine disturbs less. The binary is the one on the
PATH, of $FFMPEG, or of the package imageio-ffmpeg; without any of them the peer is PyAV's loop over
decoded frames in as many processes, and the report says so. Both take turns; medians count. The bar
is 0.8.

Memory is the peak of a fresh process that reads a capture of so many frames.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from gha_core.capture import open_capture
from gha_core.processors import cores

# Videos side by side, width, height, frames each.
QUICK = [(1, 550, 802, 120), (4, 550, 802, 60)]
FULL = [(1, 1920, 1080, 300), (4, 1100, 1604, 150), (16, 550, 802, 150)]
LENGTHS_QUICK, LENGTHS = (100, 1000), (100, 1000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small cases only")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--repeats", type=int, default=0, help="0: 5, quick 3")
    chosen = parser.parse_args()
    repeats = chosen.repeats or (3 if chosen.quick else 5)
    peer, name = find_peer()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            speed(Path(folder), case, repeats, peer, name)
            for case in (QUICK if chosen.quick else FULL)
        ]
        memory = [peak(Path(folder), n) for n in (LENGTHS_QUICK if chosen.quick else LENGTHS)]
    growth = memory[-1]["peak_mb"] - memory[0]["peak_mb"]
    print(f"memory from {memory[0]['frames']} to {memory[-1]['frames']} frames: {growth:+.0f} MB")
    if chosen.json:
        result = {"peer": name, "cores": cores(), "cases": rows, "memory": memory}
        chosen.json.write_text(json.dumps(result, indent=1))


def find_peer() -> tuple[Callable[[list[Path]], None], str]:
    binary = os.environ.get("FFMPEG") or shutil.which("ffmpeg")
    if binary is None:
        try:
            from imageio_ffmpeg import get_ffmpeg_exe

            binary = get_ffmpeg_exe()
        except ImportError:
            return pyav, f"PyAV {av.__version__}, decoding only (no ffmpeg binary was found)"
    said = subprocess.run([binary, "-version"], capture_output=True, text=True, check=True)
    return lambda videos: ffmpeg(binary, videos), said.stdout.splitlines()[0]


def ffmpeg(binary: str, videos: list[Path]) -> None:
    end = ["-f", "null", "-"]
    run_all([[binary, "-nostdin", "-v", "error", "-i", str(each), *end] for each in videos])


def pyav(videos: list[Path]) -> None:
    code = (
        "import av, sys\nfile = av.open(sys.argv[1])\nfile.streams.video[0].thread_type = 'AUTO'\n"
        "for _ in file.decode(video=0): pass"
    )
    run_all([[sys.executable, "-c", code, str(each)] for each in videos])


def run_all(commands: list[list[str]]) -> None:
    running = [subprocess.Popen(command) for command in commands]
    if any([process.wait() for process in running]):
        raise RuntimeError(f"{commands[0][0]} failed")


def ours(root: Path) -> int:
    capture = open_capture(root, "rig")
    return sum(
        len(timestep.images)
        for sequence in capture.sequences
        for timestep in capture.frames(sequence.name, sequence.timesteps)
    )


def speed(
    folder: Path,
    case: tuple[int, int, int, int],
    repeats: int,
    peer: Callable[[list[Path]], None],
    peer_name: str,
) -> dict[str, object]:
    videos, width, height, frames = case
    root = write_rig(folder / f"{videos}x{width}", videos, width, height, frames)
    files = sorted(root.glob("videos/*.mp4"))
    mine, theirs = [], []
    for _ in range(repeats):
        mine.append(timed(lambda: ours(root)))
        theirs.append(timed(lambda: peer(files)))
    read = videos * frames
    (wall, cpu), (peer_wall, peer_cpu) = (np.median(each, axis=0) / read for each in (mine, theirs))
    row = {
        "name": f"{videos} x {width}x{height}, {frames} frames each",
        "ours_fps": round(1 / wall, 1),
        "peer_fps": round(1 / peer_wall, 1),
        "ratio": round(peer_wall / wall, 3),
        "ours_cpu_ms": round(1e3 * cpu, 2),
        "peer_cpu_ms": round(1e3 * peer_cpu, 2),
    }
    print(
        f"{row['name']}: {row['ours_fps']} frames/s, {peer_name[:24]}: {row['peer_fps']}, ratio "
        f"{row['ratio']}; CPU {row['ours_cpu_ms']} and {row['peer_cpu_ms']} ms/frame"
    )
    return row


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of all cores of this process and its children."""

    def used() -> float:
        both = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in both)

    began, cpu = time.perf_counter(), used()
    work()
    return time.perf_counter() - began, used() - cpu


def peak(folder: Path, frames: int) -> dict[str, float]:
    """MB that a process which reads ``frames`` frames takes at most."""
    root = write_rig(folder / f"long{frames}", 2, 320, 240, frames // 2)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        row = {"frames": frames, "peak_mb": pool.apply(_peak_of, (root,))}
    shutil.rmtree(root)
    print(f"{frames} frames: peak {row['peak_mb']:.0f} MB")
    return row


def _peak_of(root: Path) -> float:
    ours(root)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_rig(root: Path, videos: int, width: int, height: int, frames: int) -> Path:
    """A calibrated rig whose videos move and have noise, as footage does."""
    (root / "videos").mkdir(parents=True)
    K = [[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]
    entry = {"K": K, "w2c": np.eye(4).tolist(), "width": width, "height": height}
    cameras = {f"camera{k:02d}": entry for k in range(videos)}
    (root / "cameras.json").write_text(json.dumps({"cameras": cameras}))
    first = write_video(root / "videos/camera00.mp4", width, height, frames)
    for k in range(1, videos):
        shutil.copy(first, root / f"videos/camera{k:02d}.mp4")
    return root


def write_video(path: Path, width: int, height: int, frames: int) -> Path:
    random = np.random.default_rng(0)
    scene = random.integers(0, 255, (height // 8 + 9, width // 8 + 9, 3), dtype=np.uint8)
    scene = scene.repeat(8, 0).repeat(8, 1)
    noise = [random.normal(0, 3, (height, width, 1)) for _ in range(4)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            x, y = index % 64, (2 * index) % 64
            image = scene[y : y + height, x : x + width] + noise[index % 4]
            image = np.clip(image, 0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


if __name__ == "__main__":
    main()
