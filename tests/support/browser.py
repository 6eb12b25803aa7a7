"""The page in a browser: a server of its own, headless Chromium, and words for what a person does and sees.

Every page is watched for errors on its console; a test that brings some about on purpose says so when it opens it.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

BATON = Path(sysconfig.get_path("scripts")) / "baton"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_TIMEOUT_S = 30.0
WAIT_MS = 15_000

LOADING = (r"^Failed to load resource: the server responded with a status of 503",)
"""What Chromium itself says when a server is asked whether it is ready, and is not."""
UNREACHABLE = (
    r"^WebSocket connection to .* failed",
    r"^Failed to load resource: net::ERR_(CONNECTION|EMPTY)",
    *LOADING,
)
"""What Chromium itself says when a server is gone, and comes back."""
REFUSED = (r"^WebSocket connection to .* failed", r"^Failed to load resource: the server responded with a status of 40")
"""What Chromium itself says when a server refuses."""

MARKDOWN = """\
## Primes

Use a **sieve**, see [the article](https://example.com/sieve "Sieve") and `primes(30)`:

```python
def primes(limit):
    return [n for n in range(2, limit) if all(n % k for k in range(2, n))]
```

| n | prime |
|--:|:-----:|
| 2 | yes |
| 4 | no |

1. One
   - nested
2. Two

- [x] done
- [ ] open

> Quoted, ~~struck~~ and *stressed*.
"""

SCRIPT = {
    "rules": [
        {"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.03},
        {"pattern": "^show markdown$", "reply": MARKDOWN, "gap_s": 0.004},
        {"pattern": "^break down$", "reply": "Something went ", "fault": "error"},
        {"pattern": "(?s)(.*)", "reply": r"You said: \1"},
    ]
}
"""What the model answers; `count to N` takes its time."""


class Server:
    """A Baton server in a process of its own, which can be killed and started again in its place."""

    def __init__(self, folder: Path) -> None:
        script = folder / "script.json"
        script.write_text(json.dumps(SCRIPT))
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
        self._env |= {"BATON_MODELS": "scripted", "BATON_HOME": str(folder / "home"), "BATON_SCRIPT": str(script)}
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> Self:
        command = [BATON, "serve", "--port", str(self.port)]
        self._process = subprocess.Popen(command, env=self._env, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        found = re.search(r": http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            self.end(signal.SIGKILL)
            pytest.fail(f"the server did not start within {START_TIMEOUT_S} s; it said {line!r}")
        self.port = int(found[1])
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        with self._process as process:  # closes its pipe
            process.send_signal(number)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Kill it; start it again in the same place afterwards."""
        self.end(signal.SIGKILL)
        try:
            yield
        finally:
            self.start()

    def make_key(self, tenant: str) -> str:
        command = [BATON, "keys", "create", "--tenant", tenant]
        made = subprocess.run(command, env=self._env, capture_output=True, text=True, check=True, timeout=30)
        return made.stdout.strip()


class Wire:
    """A TCP relay in front of a server, which can be cut: both sides then see their connection reset."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def cut(self) -> None:
        """Drop every connection there is; new ones are taken."""
        while self._open:
            end = self._open.pop()
            with suppress(OSError):  # gone by itself
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._relay, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _relay(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


Visit = Callable[..., Page]
"""Opens a page; `expects` are patterns of the errors that its console may show."""


@contextmanager
def visitor(browser: Browser) -> Iterator[Visit]:
    contexts, errors = [], []

    def visit(address: str, *, expects: tuple[str, ...] = (), **context: object) -> Page:
        def heard(text: str) -> None:
            if not any(re.search(pattern, text) for pattern in expects):
                errors.append(text)

        contexts.append(browser.new_context(reduced_motion="reduce", **context))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: heard(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: heard(str(error)))
        page.goto(address)
        return page

    expect.set_options(timeout=WAIT_MS)
    yield visit
    for context in contexts:
        context.close()
    assert errors == []


def connected(page: Page) -> Page:
    expect(page.locator("body")).to_have_attribute("data-state", "connected")
    return page


def say(page: Page, text: str) -> None:
    page.locator("#input").fill(text)
    send(page)


def send(page: Page) -> None:
    """Send what is written, as soon as that is possible."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    page.keyboard.press("Enter")


def answers(page: Page) -> Locator:
    return page.locator(".answer")


def words(page: Page) -> str:
    """Return the text of the last answer, to the character."""
    return answers(page).last.locator(".body").text_content() or ""


def facts(page: Page) -> Locator:
    """Return what is told of the last answer, opened."""
    told = answers(page).last.locator(".facts")
    if told.get_attribute("open") is None:
        told.locator("summary").click()
    return told


def counted(last: int) -> str:
    return " ".join(str(n) for n in range(1, last + 1))


def whole(page: Page, count: int = 1) -> None:
    """Wait until there are so many answers and the last one is not being written any more."""
    expect(answers(page)).to_have_count(count)
    expect(answers(page).last).to_have_attribute("aria-busy", "false")
