"""A program in a terminal of its own, as somebody at the keyboard has it."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import sys
import termios
from typing import Any

CTRL_C = "\x03"
CTRL_D = "\x04"
ALT_ENTER = "\x1b\r"

_ROWS, _COLUMNS = 40, 120
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()=>][0-9A-Z]?|\x1b\][^\x07]*\x07")


class Terminal:
    """Runs `python -m ...`; knows what was written, without the control sequences."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._arguments = arguments
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._keyboard = -1
        self._grown = asyncio.Event()
        self._seen = 0
        self.text = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> "Terminal":
        self._keyboard, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        os.set_blocking(self._keyboard, False)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _TAKE_TERMINAL, sys.executable, *self._arguments),
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True},
            env={**os.environ, "TERM": "xterm-256color", **self._environment},
        )
        os.close(theirs)
        asyncio.get_running_loop().add_reader(self._keyboard, self._read)
        return self

    async def __aexit__(self, *_: Any) -> None:
        asyncio.get_running_loop().remove_reader(self._keyboard)
        if self._process is not None and self._process.returncode is None:
            # Its terminal goes, as when a window is closed.
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(30):
                await self._process.wait()
        os.close(self._keyboard)

    def _read(self) -> None:
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # nobody writes any more
            asyncio.get_running_loop().remove_reader(self._keyboard)
            return
        if b"\x1b[6n" in data:
            self.type("\x1b[1;1R")  # where the cursor is, which a line editor asks
        self.text += _CONTROL.sub("", data.decode(errors="replace"))
        self._grown.set()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._keyboard, keys.encode())

    def say(self, line: str) -> None:
        """Type a line, and Enter."""
        self.type(line + "\r")

    async def shows(self, pattern: str, timeout_s: float = 30) -> re.Match[str]:
        """Wait until what was written since the last call matches, and return the match."""
        try:
            async with asyncio.timeout(timeout_s):
                while (found := re.search(pattern, self.text[self._seen :], re.DOTALL)) is None:
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            shown = re.sub(r"\s*\n\s*", "\n", self.text[self._seen :])
            raise AssertionError(f"{pattern!r} is not in what was shown since:\n{shown}") from None
        self._seen += found.end()
        return found

    async def ends(self, timeout_s: float = 30) -> int:
        """Wait until the program ends; return its status."""
        assert self._process is not None
        async with asyncio.timeout(timeout_s):
            return await self._process.wait()
