"""`llm`, the command, with models of its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from probe import (
    FEATURE_S,
    KEY,
    REAL,
    RECORDED,
    SYSTEM,
    URL,
    check,
    check_cut,
    check_kept,
    check_weather,
    feature,
    heard,
    main,
    marker,
)

FOLDER = tempfile.TemporaryDirectory()
HOME = Path(FOLDER.name)
ENVIRONMENT = {**os.environ, "LLM_USER_PATH": str(HOME), "OPENAI_API_KEY": "wrong"}
COMMAND = [str(Path(sys.executable).parent / "llm")]
MODELS = [
    {
        "model_id": f"b-{name}",
        "model_name": name,
        "api_base": URL,
        "api_key_name": "baton",
        "supports_tools": True,
        "supports_schema": True,
        "can_stream": True,
    }
    for name in (RECORDED, REAL)
]
(HOME / "extra-openai-models.yaml").write_text(json.dumps(MODELS))  # JSON is YAML
(HOME / "keys.json").write_text(json.dumps({"baton": KEY}))
(HOME / "tools.py").write_text(
    'def get_weather(city: str) -> str:\n    """Say what the weather is."""\n'
    '    return f"{city} is at {len(city)} degrees."\n'
)


def llm(*arguments: str, model: str = RECORDED) -> str:
    ran = subprocess.run(
        [*COMMAND, *arguments, "-m", f"b-{model}"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        input="",
        timeout=FEATURE_S,
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-400:])
    return ran.stdout


@feature("chat")
def _() -> None:
    told = heard(llm("Say something.", "--no-stream"))
    check(told["heard"] == ["Say something."], told)


@feature("stream")
def _() -> None:
    check(llm("count to 20").split()[-1] == "20", "")


@feature("system instructions")
def _() -> None:
    check_kept(llm("Hello.", "-s", SYSTEM), "Hello.")


@feature("history")
def _() -> None:
    llm("First.", "-s", SYSTEM)
    told = heard(llm("Second.", "-c"))
    check(told["heard"] == ["First.", "Second."] and len(told["answers"]) == 1, told)


@feature("tools")
def _() -> None:
    for mode in (["--no-stream"], []):
        told = llm("What is the weather in Bern?", "-s", SYSTEM, "--functions", str(HOME / "tools.py"), *mode)
        check_weather(told, "Bern")


@feature("parallel calls")
def _() -> None:
    told = llm("What is the weather in Bern and in Oslo?", "-s", SYSTEM, "--functions", str(HOME / "tools.py"))
    check_weather(told, "Bern", "Oslo")


@feature("structured, not strict")
def _() -> None:
    schema = {"type": "object", "properties": {"born": {"type": "integer"}}, "required": ["born"]}
    for name in (RECORDED, REAL):
        closed = json.dumps({**schema, "additionalProperties": False})
        told = json.loads(llm("Who is Ada?", "--schema", closed, "--no-stream", model=name))
        check(isinstance(told["born"], int), told)
    told = json.loads(llm("Who is Ada?", "--schema", "born int, alive bool"))
    check(isinstance(told["born"], int), told)


@feature("usage")
def _() -> None:
    llm("count to 20", "--no-stream")
    told = subprocess.run([*COMMAND, "logs", "-n", "1", "--json"], env=ENVIRONMENT, capture_output=True, check=True)
    check(json.loads(told.stdout)[0]["output_tokens"] == 20, told.stdout)


@feature("penalties")
def _() -> None:
    llm("Say tree.", "-o", "frequency_penalty", "1", "-o", "presence_penalty", "1", "-o", "max_tokens", "4", model=REAL)


@feature("context overflow recognised")
def _() -> None:
    try:
        llm("word " * 12_000, model=REAL)
    except RuntimeError as exc:
        check("maximum context length is" in str(exc), exc)
        return
    raise AssertionError("answered")


@feature("bad key recognised")
def _() -> None:
    try:
        llm("Hi.", "--key", "wrong")
    except RuntimeError as exc:
        check("401" in str(exc), exc)
        return
    raise AssertionError("answered")


@feature("cancel in mid-stream")
def _() -> None:
    prompt = marker()
    ran = subprocess.Popen([*COMMAND, prompt, "-m", f"b-{RECORDED}"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    ran.stdout.read(10)
    ran.terminate()
    ran.wait()
    check_cut(prompt)


main()
