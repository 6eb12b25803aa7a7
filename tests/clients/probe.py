"""What the scripts of the Python clients share; the standard library only, for they run in environments of their own.

A script registers one function a feature with `@feature(...)` and ends with `main()`, which prints a line of JSON for each.
"""

import asyncio
import inspect
import json
import os
import time
import traceback
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

URL = os.environ["BATON_CLIENTS_URL"]
KEY = os.environ["BATON_CLIENTS_KEY"]
UPSTREAM = os.environ["BATON_CLIENTS_UPSTREAM"]
RECORDED = "recorded"
"""The model whose answers repeat what it was sent."""
REAL = "real"
"""SmolLM2-135M."""
SYSTEM = "The password is swordfish."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Say what the weather is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FEATURE_S = 120

_features: dict[str, Callable[[], Any]] = {}


class NotOfferedError(Exception):
    """Baton said, clearly, that it does not offer this."""


def feature(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register what tries a feature; it raises if the feature does not work."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        _features[name] = function
        return function

    return register


def get_weather(city: str) -> str:
    """Say what the weather is."""
    return f"{city} is at {len(city)} degrees."


def heard(text: str | None) -> dict[str, Any]:
    """Return what the recording model was sent."""
    found: dict[str, Any] = json.loads((text or "")[(text or "").index("{") :])
    return found


def check(holds: object, told: object) -> None:
    """Raise unless `holds`, and say what was seen."""
    if not holds:
        raise AssertionError(f"seen: {told!r}"[:400])


def check_kept(text: str | None, *asked: str) -> None:
    """Raise unless the instructions and each of `asked` arrived."""
    told = heard(text)
    check(any(SYSTEM in system for system in told["system"]), told)
    for words in asked:
        check(any(words in user for user in told["heard"]), told)


def check_weather(text: str | None, *cities: str) -> None:
    """Raise unless the instructions and the results for all `cities` arrived."""
    told = heard(text)
    check(any(SYSTEM in system for system in told["system"]), told)
    for city in cities:
        check(any(get_weather(city) in result for result in told["results"]), told)


def marker() -> str:
    """Return a prompt that is answered slowly, and that no other script uses."""
    return f"slowly count to 400 ({uuid.uuid4().hex})"


def check_cut(prompt: str, seconds: float = 10) -> None:
    """Raise unless the answer to `prompt` was stopped at its source."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{UPSTREAM}/recorded") as answer:
            if prompt in json.load(answer)["cut"]:
                return
        time.sleep(0.1)
    raise AssertionError("the answer ran on although the client had gone")


def _not_offered(exc: BaseException) -> bool:
    text = str(exc).lower()
    return isinstance(exc, NotOfferedError) or "not offered" in text


def main() -> None:
    """Try each feature and print a line of JSON for it."""
    for name, function in _features.items():
        began = time.monotonic()
        line = {"feature": name, "cell": "works", "reason": ""}
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(asyncio.wait_for(function(), FEATURE_S))
            else:
                function()
        except Exception as exc:  # noqa: BLE001 - whatever a client raises is what this looks for
            root = exc
            while isinstance(root, BaseExceptionGroup):
                root = root.exceptions[0]
            reason = " ".join(f"{type(root).__name__}: {root}".split())
            line |= {"cell": "not offered" if _not_offered(root) else "FAILS", "reason": reason[:600]}
            if "BATON_CLIENTS_TRACE" in os.environ:
                traceback.print_exc()
        print(json.dumps({**line, "seconds": round(time.monotonic() - began, 1)}), flush=True)
