"""A small server of chat completions behind Baton, whose answers repeat what it was sent.

A client's script can so see, at its own end, that instructions, history, tools and results went the whole way: what was
lost on the way is missing from the answer. It plays a model that follows simple rules, and nothing in it is random.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_CITY = re.compile(r"\b(Bern|Oslo|Rome)\b")
_GAP_S = 0.02


class Upstream(ThreadingHTTPServer):
    """Serves on a free port of loopback; `bodies` are the requests, oldest first, `cut` the prompts not read to the end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.cut: list[str] = []
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def start(self) -> "Upstream":
        """Serve in a thread that ends with the process."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self


class _Handler(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(json.dumps({"bodies": self.server.bodies, "cut": self.server.cut}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            for chunk in _chunks(body):
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                self.wfile.flush()
                if "slowly" in _asked(body):
                    time.sleep(_GAP_S)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.cut.append(_asked(body))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    calls = _calls(body)
    for index, (name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": json.dumps(arguments)}
        yield _chunk({"tool_calls": [{"index": index, "id": f"up_{index}", "type": "function", "function": function}]})
    words = [] if calls else re.findall(r"\S+\s*", _text(body))
    limit = body.get("max_tokens", body.get("max_completion_tokens", len(words)))
    for word in words[:limit]:
        yield _chunk({"content": word})
    yield _chunk({}, "tool_calls" if calls else "stop" if limit >= len(words) else "length")
    asked = sum(len(_said(message).split()) for message in body["messages"])
    usage = {"prompt_tokens": asked, "completion_tokens": len(words[:limit]) + len(calls)}
    yield {**_chunk({}), "choices": [], "usage": {**usage, "total_tokens": sum(usage.values())}}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "up", "object": "chat.completion.chunk", "created": 0, "model": "upstream", "choices": [choice]}


def _said(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _asked(body: dict[str, Any]) -> str:
    return next((_said(message) for message in reversed(body["messages"]) if message["role"] == "user"), "")


def _since_asked(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body["messages"]
    last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return list(messages[last + 1 :])


def _calls(body: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what is called: each city's weather, and what has to be called."""
    tools = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in body.get("tools") or ()}
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none":
        return []
    if isinstance(choice, dict):
        tools = {name: tools[name] for name in tools if name == choice["function"]["name"]}
    done = [call["function"] for message in _since_asked(body) for call in message.get("tool_calls") or ()]
    for name in tools:
        if name.startswith("transfer_to") and name not in {call["name"] for call in done}:
            return [(name, {})]
    if "get_weather" in tools:
        told = " ".join(call["arguments"] for call in done)
        cities = [city for city in dict.fromkeys(_CITY.findall(_asked(body))) if city not in told]
        if cities:
            return [("get_weather", {"city": city}) for city in cities][: None if _parallel(body) else 1]
    if choice == "auto":
        return []
    name = next((name for name in tools if name != "get_weather"), next(iter(tools)))
    return [(name, _sample(tools[name], tools[name]))]


def _parallel(body: dict[str, Any]) -> bool:
    return bool(body.get("parallel_tool_calls", True))


def _text(body: dict[str, Any]) -> str:
    if count := re.search(r"count to (\d+)", _asked(body)):
        text = "".join(f"{n} " for n in range(1, int(count[1]) + 1))
    else:
        match body.get("response_format"):
            case {"type": "json_schema", "json_schema": {"schema": schema}}:
                text = json.dumps(_sample(schema, schema))
            case {"type": "json_object"}:
                text = json.dumps({"city": "Bern", "degrees": 7})
            case _:
                heard = {
                    "heard": [_said(message) for message in body["messages"] if message["role"] == "user"],
                    "system": [_said(message) for message in body["messages"] if message["role"] == "system"],
                    "answers": [_said(message) for message in body["messages"] if message["role"] == "assistant"],
                    "results": [_said(message) for message in body["messages"] if message["role"] == "tool"],
                    "tools": [tool["function"]["name"] for tool in body.get("tools") or ()],
                }
                text = json.dumps(heard)
    stop = body.get("stop") or []
    return text[
        : min((at for at in map(text.find, [stop] if isinstance(stop, str) else stop) if at >= 0), default=len(text))
    ]


def _sample(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Return a value of the simple schemas that the scripts use."""
    if "$ref" in schema:
        return _sample(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], root)
    match schema.get("type"):
        case "integer" | "number":
            return 7
        case "boolean":
            return True
        case "array":
            return [_sample(schema.get("items", {}), root)]
        case "object":
            return {name: _sample(inner, root) for name, inner in schema.get("properties", {}).items()}
        case _:
            return "Bern"
