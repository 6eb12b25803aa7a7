"""The line that the user types on: history, editing, several lines, completion of commands."""

import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from streaming.terminal.commands import COMMANDS
from streaming.terminal.screen import MARK

_MENU_LINES = 5


class LinePrompt:
    """Asks for a line; Enter sends, Alt-Enter (or Escape, then Enter) begins a new one."""

    def __init__(self, history: Path, arguments: Callable[[str], Iterable[str]]) -> None:
        """Prepare.

        Args:
            history: the file of what was typed before, made readable by its owner only.
            arguments: what may follow a command, by its name.
        """
        history.touch(mode=0o600)
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("bold", MARK)]),
            multiline=True,
            prompt_continuation=" " * len(MARK),
            history=FileHistory(str(history)),
            key_bindings=_keys(),
            completer=_Commands(arguments),
            reserve_space_for_menu=_MENU_LINES,
        )

    async def ask(self) -> str:
        """Return what was typed.

        Raises:
            KeyboardInterrupt: Ctrl-C, with nothing typed.
            EOFError: Ctrl-D, likewise.
        """
        return await self._session.prompt_async(handle_sigint=False)


@contextmanager
def unechoed() -> Iterator[None]:
    """Keep what is typed ahead off the screen; it waits for the next prompt."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class _Commands(Completer):
    """Completes a slash and what follows."""

    def __init__(self, arguments: Callable[[str], Iterable[str]]) -> None:
        self._arguments = arguments

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the text before the cursor may become."""
        typed = document.text_before_cursor
        if not typed.startswith("/") or "\n" in typed:
            return
        name, gap, begun = typed[1:].partition(" ")
        if gap:
            for argument in self._arguments(name):
                if argument.startswith(begun):
                    yield Completion(argument, start_position=-len(begun))
            return
        for command, (_, meaning) in COMMANDS.items():
            if command.startswith(name):
                yield Completion(command, start_position=-len(name), display=f"/{command}", display_meta=meaning)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
