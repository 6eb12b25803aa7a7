"""What the user types: something to say, or a command that begins with a slash."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal, get_args

from models.errors import BadInput

Name = Literal["help", "new", "sessions", "open", "model", "system", "title", "export", "quit"]

COMMANDS: Final[dict[Name, tuple[str, str]]] = {
    "help": ("", "say what there is"),
    "new": ("", "begin a new conversation"),
    "sessions": ("", "list the newest conversations"),
    "open": ("NUMBER or ID", "go on with a conversation"),
    "model": ("[NAME]", "list the models, or choose one; 'auto' leaves the choice to the router"),
    "system": ("[TEXT]", "show the system prompt, or set it; 'none' takes it away"),
    "title": ("[TEXT]", "show the title, or set it"),
    "export": ("[FILE]", "write the conversation to a file, .md or .json"),
    "quit": ("", "leave; Ctrl-D does too"),
}
"""Every command: what follows it, and what it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlashCommand:
    """A command, and what was typed after it."""

    name: Name
    argument: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Something to say to the model."""

    text: str


def parse(typed: str) -> SlashCommand | Say | None:
    """Read a line; None if it is blank. Two slashes at the start say a text that begins with one.

    Raises:
        BadInput: there is no such command, or something has to follow it, or nothing may.
    """
    text = typed.strip()
    if not text:
        return None
    if not text.startswith("/") or text.startswith("//"):
        return Say(text=text.removeprefix("/") if text.startswith("//") else text)
    word, _, argument = text[1:].partition(" ")
    name = _name(word.lower())
    takes = COMMANDS[name][0]
    argument = argument.strip()
    if argument and not takes:
        raise BadInput(f"/{name} takes nothing after it.")
    if not argument and takes and not takes.startswith("["):
        raise BadInput(f"/{name} needs something after it: /{name} {takes}.")
    return SlashCommand(name=name, argument=argument)


def _name(word: str) -> Name:
    for name in get_args(Name):
        if word == name:
            known: Name = name
            return known
    close = get_close_matches(word, COMMANDS, n=1)
    hint = f"Did you mean /{close[0]}?" if close else "/help lists the commands."
    raise BadInput(f"There is no command /{word[:40]}. {hint} To say a text that begins with a slash, type it twice.")
