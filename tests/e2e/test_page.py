"""The page, as a person with a browser finds it: the real server, headless Chromium, nothing in between.

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
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

pytestmark = pytest.mark.browser

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

UNREACHABLE = (r"^WebSocket connection to .* failed", r"^Failed to load resource: net::ERR_(CONNECTION|EMPTY)")
"""What Chromium itself says when a server is gone."""
REFUSED = (r"^WebSocket connection to .* failed", r"^Failed to load resource: the server responded with a status of 40")
"""What Chromium itself says when a server refuses."""

SCRIPT = {
    "rules": [
        {"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.03},
        {"pattern": "(?s)(.*)", "reply": r"You said: \1"},
    ]
}


class Server:
    """A Baton server in a process of its own, which can be killed and started again in its place."""

    def __init__(self, folder: Path) -> None:
        script = folder / "script.json"
        script.write_text(json.dumps(SCRIPT))
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
        self._env |= {"BATON_HOME": str(folder / "home"), "BATON_SCRIPT": str(script)}
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
        found = re.search(r"Baton is ready: http://127\.0\.0\.1:(\d+)/", line)
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test leaves changed."""
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
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install one, e.g. `apt-get install chromium`")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield launched
        launched.close()


Visit = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens pages; `expects` are patterns of the errors that a page's console may show."""
    with _visitor(browser) as opened:
        yield opened


@contextmanager
def _visitor(browser: Browser) -> Iterator[Visit]:
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
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()
    return page


def say(page: Page, text: str) -> None:
    connected(page).get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Locator:
    return page.locator(".answer")


def words(page: Page) -> str:
    """Return the text of the last answer, to the character."""
    return answers(page).last.locator(".body").text_content() or ""


def counted(last: int) -> str:
    return "".join(f"{n} " for n in range(1, last + 1))


def whole(page: Page, count: int = 1) -> None:
    """Wait until there are so many answers and the last one is not being written any more."""
    expect(answers(page)).to_have_count(count)
    expect(answers(page).last).to_have_attribute("aria-busy", "false")


def test_a_message_gets_an_answer_that_arrives_bit_by_bit(server: Server, visit: Visit) -> None:
    page = visit(server.address)
    say(page, "count to 40")
    expect(answers(page)).to_contain_text("1 2 3")
    seen = words(page)
    assert counted(40).startswith(seen)
    assert seen != counted(40)
    whole(page)
    assert words(page) == counted(40)
    expect(page.locator(".said.user")).to_have_text("count to 40")


def test_an_answer_shows_its_route_and_its_times(server: Server, visit: Visit) -> None:
    page = visit(server.address)
    say(page, "Hello, Baton")
    whole(page)
    facts = answers(page).locator(".facts")
    expect(facts).to_contain_text("scripted")
    expect(facts).to_contain_text("the only one that can")
    expect(facts).to_contain_text(re.compile(r"first word \d+ ms"))
    expect(facts).to_contain_text(re.compile(r"total (\d+ ms|\d+\.\d+ s)"))


def test_an_example_starts_a_conversation(server: Server, visit: Visit) -> None:
    page = connected(visit(server.address))
    page.get_by_role("button", name="Hello, Baton").click()
    whole(page)
    assert words(page) == "You said: Hello, Baton"
    expect(page.locator("#empty")).to_be_hidden()


def test_shift_and_enter_start_a_line_and_enter_sends(server: Server, visit: Visit) -> None:
    page = connected(visit(server.address))
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(answers(page)).to_have_count(0)
    page.keyboard.press("Enter")
    whole(page)
    assert words(page) == "You said: one\ntwo"
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


def test_markup_is_shown_and_not_obeyed(server: Server, visit: Visit) -> None:
    page = visit(server.address)
    say(page, "<img src=x onerror=alert(1)><b>bold</b>")
    whole(page)
    assert words(page) == "You said: <img src=x onerror=alert(1)><b>bold</b>"
    expect(page.locator("#log :is(img, b)")).to_have_count(0)


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_interrupts_an_answer_and_marks_it(server: Server, visit: Visit, how: str) -> None:
    page = visit(server.address)
    say(page, "count to 900")
    expect(answers(page)).to_contain_text("1 2 3")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    whole(page)
    expect(answers(page)).to_contain_text("Interrupted")
    assert counted(900).startswith(words(page))
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    say(page, "still there?")
    whole(page, 2)
    assert words(page) == "You said: still there?"


def test_a_reload_brings_the_conversation_back(server: Server, visit: Visit) -> None:
    page = visit(server.address)
    say(page, "Hello, Baton")
    whole(page)
    say(page, "count to 900")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.keyboard.press("Escape")
    whole(page, 2)
    before = page.locator("#log").inner_text()
    page.reload()
    whole(page, 2)
    expect(answers(page).last).to_contain_text("Interrupted")
    expect(page.locator("#log")).to_have_text(before, use_inner_text=True)
    assert page.locator("#log").inner_text() == before


def test_a_reload_in_the_middle_of_an_answer_misses_nothing(server: Server, visit: Visit) -> None:
    page = visit(server.address)
    say(page, "count to 60")
    expect(answers(page)).to_contain_text("1 2 3")
    page.reload()
    whole(page)
    assert words(page) == counted(60)


def test_a_new_conversation_is_empty_and_back_returns_to_the_old_one(server: Server, visit: Visit) -> None:
    page = visit(server.address)
    say(page, "Hello, Baton")
    whole(page)
    first = page.url
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("heading", name="See who answers")).to_be_visible()
    expect(page.locator("#state")).to_have_text("Connected")
    assert "#" not in page.url, "nothing was said yet that could be gone back to"
    page.go_back()
    whole(page)
    assert page.url == first
    assert words(page) == "You said: Hello, Baton"


def test_a_connection_lost_in_the_middle_of_an_answer_resumes_without_doubling_a_character(
    server: Server, visit: Visit
) -> None:
    wire = Wire(server.port)
    try:
        page = visit(wire.address, expects=UNREACHABLE)
        say(page, "count to 80")
        for seen in ("3", "25"):
            expect(answers(page)).to_contain_text(f" {seen} ")
            wire.cut()
        whole(page)
        assert words(page) == counted(80)
        expect(answers(page).locator(".facts")).to_contain_text("first word")
        expect(page.locator(".said")).to_have_count(1)
    finally:
        wire.close()


def test_a_killed_server_is_found_again_and_the_conversation_goes_on(server: Server, visit: Visit) -> None:
    page = visit(server.address, expects=UNREACHABLE)
    say(page, "Hello, Baton")
    whole(page)
    with server.killed():
        expect(page.get_by_text("Connection lost")).to_be_visible()
        page.get_by_label("Message", exact=True).fill("kept while nobody listens")
        page.keyboard.press("Enter")
    connected(page)
    expect(page.get_by_label("Message", exact=True)).to_have_value("kept while nobody listens")
    page.keyboard.press("Enter")
    whole(page, 2)
    assert answers(page).locator(".body").all_text_contents() == [
        "You said: Hello, Baton",
        "You said: kept while nobody listens",
    ]
    expect(page.locator(".said")).to_have_count(2)


def test_an_answer_that_a_killed_server_left_is_marked_as_not_whole(server: Server, visit: Visit) -> None:
    page = visit(server.address, expects=UNREACHABLE)
    say(page, "count to 900")
    expect(answers(page)).to_contain_text("1 2 3")
    with server.killed():
        expect(page.get_by_text("Connection lost")).to_be_visible()
    whole(page)
    expect(answers(page)).to_contain_text("The server was restarted before this answer was whole.")


def test_a_message_that_cannot_be_sent_returns_to_the_input(server: Server, visit: Visit) -> None:
    page = connected(visit(server.address))
    text = "x" * 1_100_000
    page.evaluate("text => { document.getElementById('input').value = text; }", text)
    page.keyboard.press("Enter")
    # The server closes in the middle of so long a message; its reason may not outrun the broken connection.
    note = page.get_by_text(re.compile(r"^This message is too long|while this message was being sent\.$"))
    expect(note).to_be_visible()
    assert page.evaluate("document.getElementById('input').value.length") == len(text)
    expect(page.locator(".said")).to_have_count(0)
    page.get_by_role("button", name="Dismiss").click()
    expect(note).to_be_hidden()


def test_an_unknown_conversation_gives_way_to_a_new_one(server: Server, visit: Visit) -> None:
    page = visit(f"{server.address}#sess_nobody", expects=REFUSED)
    expect(page.get_by_text("That conversation is not known here")).to_be_visible()
    assert "sess_nobody" not in page.url
    say(page, "Hello, Baton")
    whole(page)


def test_a_server_with_keys_asks_for_one(own_server: Server, visit: Visit) -> None:
    key = own_server.make_key("acme")
    page = visit(own_server.address, expects=REFUSED)
    page.get_by_label("Key", exact=True).fill("not a key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This key is not good here")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")
    say(page, "Hello, Baton")
    whole(page)
    page.reload()
    whole(page)
    assert words(page) == "You said: Hello, Baton"


def test_it_works_on_a_phone(server: Server, visit: Visit) -> None:
    page = connected(visit(server.address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True))
    page.get_by_role("button", name="count to 20").tap()
    whole(page)
    say(page, "word " * 400 + "m" * 400)
    whole(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
    expect(answers(page).last.locator(".facts")).to_be_in_viewport()


def test_a_reader_who_has_scrolled_up_is_left_there(server: Server, visit: Visit) -> None:
    page = visit(server.address, viewport={"width": 800, "height": 500})
    say(page, "line\n" * 60)
    whole(page)
    say(page, "count to 900")
    expect(answers(page).last).to_contain_text("1 2 3")
    page.locator("#scroll").hover()
    page.mouse.wheel(0, -600)
    expect(page.get_by_role("button", name="Go to the latest message")).to_be_visible()
    place = page.evaluate("document.getElementById('scroll').scrollTop")
    expect(answers(page).last).to_contain_text("30 31")
    assert page.evaluate("document.getElementById('scroll').scrollTop") == place
    page.get_by_role("button", name="Go to the latest message").click()
    expect(answers(page).last.locator(".facts")).to_be_in_viewport()
    page.keyboard.press("Escape")
    whole(page, 2)
