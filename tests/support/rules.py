"""What the scripted engine is told to say where the surfaces are tested."""

from typing import Any

RULES: list[dict[str, Any]] = [
    {"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1"},
    {"pattern": r"^slowly count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.02},
    {"pattern": r"^wait$", "reply": "It takes its time.", "gap_s": 60},
    {"pattern": r"weather in (\w+)", "reply": '{"city": "\\1"}', "call": "get_weather"},
    {"pattern": r"^sunny$", "reply": "The sun shines."},
    {"pattern": r"^think of (\w+)$", "thought": r"What is \1? ", "reply": r"\1 it is."},
    {"pattern": r"^nothing$", "reply": ""},
    {"pattern": r"^fail at once$", "reply": "", "fault": "error"},
    {"pattern": r"^fail$", "reply": "I am about to ", "fault": "error"},
    {"pattern": r"^die$", "reply": "I am about to ", "fault": "exit"},
    {"pattern": r"^flood$", "reply": "{n} " + "x" * 20_000 + " ", "times": "500", "gap_s": 0.0005},
    {"pattern": r"(?s)(.*)", "reply": "You said: \\1"},
]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Say what the weather is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
"""A tool as chat completions have it."""
