"""Markdown in a terminal, while it grows.

What is whole is printed for good and scrolls away; only the last block, which may still change, is drawn again and
again, and of it no more than fits the screen. So an answer may be longer than the screen, and the cost of a word does
not grow with the answer.

The text is a model's, or a stranger's: control characters do not reach the terminal, markup shows as it is written, and
a link shows where it leads.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
_CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})
_REDRAWS_PER_S = 12
_ROOM_LINES = 2
_OPENING_LINES = 2


def printable(text: str) -> str:
    """Return `text` without what would command the terminal: every control character but newline and tab."""
    return text.translate(_CONTROL)


class Block(Markdown):
    """Markdown as rich draws it, but for what `_as_drawn` says, and no HTML."""

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False, code_theme="ansi_dark")
        self.markup = text
        self.parsed = list(_as_drawn(_PARSER.parse(text)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw without the blank lines that rich puts before some blocks and after others, and the blanks at the end."""
        segments = (piece for piece in super().__rich_console__(console, options) if isinstance(piece, Segment))
        lines = list(Segment.split_lines(segments))
        blank = [not "".join(segment.text for segment in line).strip() for line in lines]
        first = next((n for n, is_blank in enumerate(blank) if not is_blank), len(lines))
        last = len(lines) - next((n for n, is_blank in enumerate(reversed(blank)) if not is_blank), 0)
        for line in lines[first:last]:
            yield from _without_padding(line)
            yield Segment.line()


def blocks(text: str) -> list[str]:
    """Cut `text` into its blocks. What follows changes only the last.

    But for a list with blank lines between its items: begun so, the next item is a list of its own, which is drawn the same.
    """
    starts = [token.map[0] for token in _PARSER.parse(text) if token.map and token.level == 0 and token.nesting >= 0]
    lines = list(accumulate((len(line) + 1 for line in text.split("\n")), initial=0))
    cuts = [0, *(lines[start] for start in starts[1:]), len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts)]


class Growing:
    """An answer's text on the screen, while it is written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="dim")
        self._printed = 0
        self._text = ""

    def show(self, text: str) -> None:
        """Show `text`, which begins with all that was shown before.

        What is shorter than what is printed already, as when it is told again after a loss, waits until it is longer.
        """
        text = printable(text)
        if len(text) < self._printed:
            return
        # A block ends with a line, or with the character after it.
        may_end, self._text = "\n" in text[max(0, len(self._text) - 1) :], text
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._last_lines,
                refresh_per_second=_REDRAWS_PER_S,
                transient=True,
            )
            self._live.start()
        if may_end:
            self._print(blocks(text[self._printed :])[:-1])

    def end(self) -> None:
        """Print what is left, for good."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._print(blocks(self._text[self._printed :]))

    def _print(self, whole: list[str]) -> None:
        for block in whole:
            self._printed += len(block)
            if block.strip():
                self._console.print(Block(block))
                self._console.print()

    def _last_lines(self) -> RenderableType:
        lines = self._text[self._printed :].split("\n")
        if self._printed == 0 and not any(lines):
            return self._spinner
        if len(lines) > self._console.height + _OPENING_LINES:
            # What is above the screen is not drawn, so that a long block costs no more than a short one. The lines that
            # say what it is stay: a fence, a table's head.
            lines = lines[:_OPENING_LINES] + lines[-self._console.height :]
        return _Tail(Block("\n".join(lines)))


class _Tail:
    """The last lines of something, as many as the screen has room for."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, console.height - _ROOM_LINES)
        for line in console.render_lines(self._inner, options.update(height=None), pad=False)[-room:]:
            yield from line
            yield Segment.line()


def _without_padding(line: list[Segment]) -> list[Segment]:
    """Return a line without the blanks at its end, which would be copied with it."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    if line:
        text, style, control = line[-1]
        line = [*line[:-1], Segment(text.rstrip(), style, control)]
    return line


def dim(text: str) -> Text:
    """Return a line that stands back."""
    return Text(printable(text), style="dim")


def _as_drawn(tokens: list[Token]) -> Iterator[Token]:
    """Yield `tokens` with what rich draws badly as plain text: links, pictures, and the ends of lines."""
    leads_to = said = ""
    for token in tokens:
        if token.children:
            token.children = list(_as_drawn(token.children))
        said += token.content
        match token.type:
            case "softbreak":
                # A line of a poem, or of a model that writes like one, ends where it ends.
                yield Token("hardbreak", "br", 0)
            case "link_open":
                leads_to, said = str(token.attrs.get("href", "")), ""
            case "link_close":
                if leads_to.removeprefix("mailto:") != said:
                    yield Token("text", "", 0, content=f" ({leads_to})")
            case "image":
                yield Token("text", "", 0, content=f"{token.content} ({token.attrs.get('src', '')})")
            case _:
                yield token
