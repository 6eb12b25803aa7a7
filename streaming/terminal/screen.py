"""Where a conversation is shown: a terminal that somebody reads, or a stream that a script does."""

from typing import Protocol, TextIO, assert_never

from rich.console import Console
from rich.text import Text

from streaming.terminal.markdown import Block, Growing, dim, printable
from streaming.terminal.transcript import (
    Answered,
    Answering,
    Removed,
    Shown,
    ShownAnswer,
    ShownFault,
    ShownSettings,
    ShownWords,
    Waiting,
)

MARK = "▸ "
"""Before what the user says."""


class Screen(Protocol):
    """Shows a conversation."""

    def show(self, shown: Shown, *, ours: bool) -> None:
        """Show what has changed; `ours` says of an answer whether this client has asked for it."""

    def rest(self) -> None:
        """Leave what is there: nothing is being written any more."""

    def note(self, text: str) -> None:
        """Say something about the connection, or about what is shown."""


class TerminalScreen:
    """Markdown that grows, with the route and the times under each answer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._growing: Growing | None = None

    def show(self, shown: Shown, *, ours: bool) -> None:
        """Show everything, whoever asked for it."""
        match shown:
            case ShownWords():
                self._say(shown)
            case Waiting():
                self._write("")
            case Answering():
                self._write(shown.answer.text)
            case Answered():
                self._write(shown.answer.text)
                self.rest()
                self._tell(shown.answer)
            case Removed():
                self.note("A message was taken out of this conversation elsewhere.")
            case ShownSettings():
                pass  # shown when they are asked for
            case ShownFault():
                self._console.print(Text(printable(shown.message), style="red"))
            case _:
                assert_never(shown)

    def rest(self) -> None:
        """Leave on the screen what is being drawn."""
        if self._growing is not None:
            self._growing.end()
            self._growing = None

    def note(self, text: str) -> None:
        """Print a line that stands back."""
        self._console.print(dim(text))

    def _say(self, said: ShownWords) -> None:
        if said.role == "user":
            # As if it had been typed here.
            self._console.print(Text(MARK + printable(said.text).replace("\n", "\n  "), style="bold"))
        elif said.role == "assistant":
            self._console.print(Block(printable(said.text)))
        else:
            self.note(f"{said.role}: {said.text}")
        self._console.print()

    def _write(self, text: str) -> None:
        if self._growing is None:
            self._growing = Growing(self._console)
        self._growing.show(text)

    def _tell(self, answer: ShownAnswer) -> None:
        if answer.problem is not None:
            self._console.print(Text(printable(answer.problem), style="yellow"))
        self.note(answer.facts())
        self._console.print()


class StreamScreen:
    """The answer alone, as it was written; everything else goes to `notes`, if anywhere."""

    def __init__(self, out: TextIO, notes: Console | None) -> None:
        self._out = out
        self._notes = notes
        self._clean = printable if out.isatty() else str
        self._written = 0

    def show(self, shown: Shown, *, ours: bool) -> None:
        """Write what is new of the answer that was asked for."""
        match shown:
            case Answering() if ours:
                self._write(shown.answer.text)
            case Answered() if ours:
                text = shown.answer.text
                self._write(text if text.endswith("\n") else text + "\n")
                self.note(shown.answer.facts())
            case ShownFault():
                self.note(shown.message)
            case _:
                pass  # what else is said in the conversation is not the answer

    def rest(self) -> None:
        """Do nothing: what is written is written."""

    def note(self, text: str) -> None:
        """Say it beside the answer."""
        if self._notes is not None:
            self._notes.print(dim(text), soft_wrap=True)

    def _write(self, text: str) -> None:
        # Told again after a loss, it is shorter than what is written, until it is longer.
        if len(text) > self._written:
            self._out.write(self._clean(text[self._written :]))
            self._out.flush()
            self._written = len(text)
