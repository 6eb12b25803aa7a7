"""What the tests of the running server share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.browser import CHROMIUM, CHROMIUM_ARGS, Server, Visit, visitor


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test leaves changed, except that conversations stay."""
    started = Server(tmp_path_factory.mktemp("page")).start()
    yield started
    started.end()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own."""
    started = Server(tmp_path).start()
    yield started
    started.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one module. While it runs, no test can use asyncio."""
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install one, e.g. `apt-get install chromium`")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens pages, and looks for errors on their consoles at the end."""
    with visitor(browser) as opened:
        yield opened
