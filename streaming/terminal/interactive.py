"""The loop of an interactive conversation, and its commands."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.errors import BadInput, BatonError
from streaming.terminal.api import Api, Json
from streaming.terminal.commands import COMMANDS, Name, Say, SlashCommand, parse
from streaming.terminal.conversation import Chat
from streaming.terminal.markdown import dim, printable
from streaming.terminal.prompt import LinePrompt, unechoed

_LISTED = 20
_FORMS = {".md": "markdown", ".json": "json"}


class Interactive:
    """The loop of an interactive conversation, and its commands."""

    def __init__(self, api: Api, conversation: Chat, console: Console, history: Path) -> None:
        self._api = api
        self._conversation = conversation
        self._console = console
        self._models: list[Json] = []
        self._listed: list[Json] = []
        self._left = False
        self._prompt = LinePrompt(history, self._completions)
        self._commands: dict[Name, Callable[[str], Awaitable[None]]] = {
            "help": self._help,
            "new": self._new,
            "sessions": self._list,
            "open": self._open,
            "model": self._model,
            "system": self._system,
            "title": self._title,
            "export": self._export,
            "quit": self._quit,
        }

    async def run(self) -> None:
        """Converse until the user leaves."""
        self._models = await self._api.models()
        while not self._left:
            try:
                typed = parse(await self._prompt.ask())
                with unechoed():
                    await self._do(typed)
            except KeyboardInterrupt:
                self._note("Ctrl-D or /quit leaves.")
            except EOFError:
                return
            except BatonError as exc:
                self._console.print(printable(exc.message), style="red", markup=False, highlight=False)

    async def _do(self, typed: SlashCommand | Say | None) -> None:
        if isinstance(typed, SlashCommand):
            await self._commands[typed.name](typed.argument)
        elif isinstance(typed, Say):
            self._console.print()
            await self._conversation.ask(typed.text)

    async def _quit(self, _nothing: str) -> None:
        self._left = True

    async def _new(self, _nothing: str) -> None:
        await self._conversation.open(None)
        self._note("A new conversation.")

    async def _help(self, _nothing: str) -> None:
        self._print((f"/{name} {takes}", meaning) for name, (takes, meaning) in COMMANDS.items())
        self._note("\nEnter sends, Alt-Enter begins a new line. Ctrl-C stops an answer.")

    async def _list(self, _nothing: str) -> None:
        self._listed = await self._api.sessions(_LISTED)
        if not self._listed:
            self._note("No conversation has begun yet.")
            return
        here = self._conversation.session_id
        self._print(
            (
                f"{number} {session['title'] or 'untitled'}",
                _when(session["updated_at"]),
                "here" if session["id"] == here else "",
            )
            for number, session in enumerate(self._listed, 1)
        )
        self._note("/open NUMBER goes on with one.")

    async def _open(self, which: str) -> None:
        if which.isdecimal() and len(which) < 4:
            self._listed = self._listed or await self._api.sessions(_LISTED)
            if not 1 <= int(which) <= len(self._listed):
                raise BadInput(f"There is no conversation number {which}. /sessions lists them.")
            which = self._listed[int(which) - 1]["id"]
        self._console.print()
        await self._conversation.open(which)

    async def _model(self, name: str) -> None:
        if name:
            await self._choose("model", None if name == "auto" else name)
            self._note("The router chooses the model." if name == "auto" else f"{name} answers from now on.")
            return
        self._models = await self._api.models()
        chosen = self._conversation.settings.model
        self._print((model["id"], _about(model), "chosen" if model["id"] == chosen else "") for model in self._models)
        if chosen is None:
            self._note("The router chooses.")

    async def _system(self, text: str) -> None:
        if text:
            await self._choose("instructions", None if text == "none" else text)
            self._note("The system prompt is taken away." if text == "none" else "The system prompt is set.")
        else:
            self._note(self._conversation.settings.instructions or "There is no system prompt.")

    async def _choose(self, name: str, value: str | None) -> None:
        """Change a setting of this conversation, and of those that will be begun."""
        await self._conversation.change(**{name: value})
        self._conversation.chosen[name] = value

    async def _title(self, text: str) -> None:
        if text:
            await self._conversation.change(title=text)
        else:
            self._note(self._conversation.settings.title or "There is no title yet.")

    async def _export(self, name: str) -> None:
        if not self._conversation.begun:
            raise BadInput("There is nothing to export yet.")
        name = name or f"{self._conversation.session_id}.md"
        form = _FORMS.get(name[name.rfind(".") :])
        if form is None:
            raise BadInput(f"{name}: the name of the file has to end in .md or .json.")
        text = await self._api.export(self._conversation.session_id, form)
        path = await asyncio.to_thread(_write_new, name, text)
        self._note(f"Written to {path}.")

    def _completions(self, command: str) -> Iterable[str]:
        if command == "model":
            return ["auto", *(str(model["id"]) for model in self._models)]
        return ["none"] if command == "system" else []

    def _print(self, rows: Iterable[tuple[str, ...]]) -> None:
        """Print rows whose first column stands out."""
        table = Table.grid(padding=(0, 2))
        for first, *others in rows:
            table.add_row(Text(printable(first)), *(dim(other) for other in others))
        self._console.print(table)

    def _note(self, text: str) -> None:
        self._console.print(dim(text))


def _about(model: Json) -> str:
    facts = model["baton"]
    if "alias_of" in facts:
        return f"another name of {facts['alias_of']}"
    return f"{facts['state']}, {facts['context_tokens']:,} tokens"


def _when(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%d %b %H:%M")


def _write_new(name: str, text: str) -> Path:
    path = Path(name).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:
        raise BadInput(f"{path} cannot be written: {exc.strerror}.") from exc
    return path
