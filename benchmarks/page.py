"""How quickly an exported page opens and draws, in headless Chromium without a graphics card.

    gha export demo --format html && python -m benchmarks.page outputs/demo.html

Load: from asking for the file to the first picture. Speed: pictures per second at 512 x 512 px
while a clip plays, and while the camera turns. ``--renderer webgl`` draws by software WebGL
(SwiftShader) instead of the page's own renderer for machines without a card.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import CHROMIUM, FLAGS  # noqa: E402

SIZE = 512
_COUNT = "() => Number(document.body.dataset.pictures)"
# Turns the camera with every picture, for so many milliseconds.
_TURN = """async (duration) => {
  const canvas = document.querySelector("canvas"), start = performance.now();
  const move = (kind, clientX) => canvas.dispatchEvent(
    new PointerEvent(kind, { pointerId: 1, clientX, clientY: 200, buttons: 1 }));
  canvas.setPointerCapture = () => {};
  move("pointerdown", 0);
  while (performance.now() - start < duration) {
    await new Promise(requestAnimationFrame);
    move("pointermove", 100 * Math.sin((performance.now() - start) / 500));
  }
  move("pointerup", 0);
}"""


def measure(path: Path, renderer: str | None, seconds: float) -> dict[str, Any]:
    """Figures of one page, by name."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": SIZE + 300, "height": SIZE + 200})
        # The footer's height depends on its text.
        page.add_init_script(
            "document.addEventListener('DOMContentLoaded', () => {"
            f"const canvas = document.querySelector('canvas').style;"
            f"canvas.width = canvas.height = '{SIZE}px' }})"
        )
        start = time.perf_counter()
        page.goto(path.resolve().as_uri() + (f"#{renderer}" if renderer else ""))
        page.wait_for_selector("body[data-pictures]")
        load = time.perf_counter() - start
        side = page.evaluate("[document.querySelector('canvas').width]")
        page.locator("#play").click()
        playing = _rate(page, lambda: page.wait_for_timeout(1000 * seconds))
        page.locator("#play").click()
        turning = _rate(page, lambda: page.evaluate(_TURN, 1000 * seconds))
        browser.close()
    return {
        "page": path.name,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "pixels": side[0] ** 2,
        "load_seconds": round(load, 2),
        "playing_fps": round(playing, 1),
        "turning_fps": round(turning, 1),
    }


def _rate(page: Page, act: Any) -> float:
    before, start = page.evaluate(_COUNT), time.perf_counter()
    act()
    return (page.evaluate(_COUNT) - before) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("page", type=Path)
    parser.add_argument("--renderer", choices=["cpu", "webgl"])
    parser.add_argument("--quick", action="store_true", help="two seconds instead of eight")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options.page, options.renderer, 2 if options.quick else 8)
    for name, value in figures.items():
        print(f"{name:14} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
