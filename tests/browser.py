"""Headless Chromium for tests of web pages: Debian's package, driven by Playwright, software WebGL.

Playwright's own browsers are never downloaded. conftest.py makes the fixtures known to all tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
HERE = ("127.0.0.1", "localhost", "")  # "": data: and blob: addresses, and files


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own. It skips the test where there is none.

    Of a module and not of the session: while Playwright runs, its thread can run no other event
    loop, and tests of Prefect want theirs.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of 1000 x 700 px. The test fails at its end if the page wrote an error to the
    console, threw one, or asked another machine for anything."""
    wrong: list[str] = []
    tab = browser.new_page(viewport={"width": 1000, "height": 700})
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request",
        lambda asked: (
            wrong.append(f"asked for {asked.url}")
            if urlsplit(asked.url).hostname not in (*HERE, None)
            else None
        ),
    )
    yield tab
    tab.close()
    assert wrong == []


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """build/screenshots: what pages looked like, kept for people."""
    folder = Path(__file__).parents[1] / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
