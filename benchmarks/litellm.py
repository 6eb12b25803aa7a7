"""LiteLLM's proxy as a peer: a virtual environment of its own, made once, in the cache."""

import json
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from filelock import FileLock

from benchmarks.processes import Process, free_port, running

VERSION = "1.104.4"

# What its documentation asks for in production; without keys, a database or callbacks, as Baton runs beside it.
_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}


def prepare(cache: Path) -> Path:
    """Return the folder of the virtual environment, having made it if need be, which takes minutes.

    Raises:
        subprocess.CalledProcessError: it cannot be installed; pip has said why.
    """
    folder = cache / "bench" / f"litellm-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    installed = folder / ".installed"
    with FileLock(folder / ".lock"):
        if not installed.exists():
            print(f"Installing LiteLLM {VERSION} into {folder}: once, some 700 MB.", flush=True)
            venv.create(folder, with_pip=True, clear=False)
            pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
            subprocess.run([*pip, "--progress-bar", "on", f"litellm[proxy]=={VERSION}"], check=True, stdout=sys.stdout)
            installed.touch()
    return folder


@asynccontextmanager
async def proxy(environment: Path, upstream: str, folder: Path) -> AsyncIterator[tuple[Process, str]]:
    """Run the proxy before `upstream` with its configuration in `folder`; yield it and the address that it takes chats at."""
    model = {"model": "openai/upstream", "api_base": upstream, "api_key": "none"}
    config = folder / "litellm.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({"model_list": [{"model_name": "upstream", "litellm_params": model}]}))
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = (
        str(environment / "bin" / "litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    )
    ready = f"{address}/health/liveliness"
    async with running(*command, "--telemetry", "False", answers=ready, environment=_ENVIRONMENT) as process:
        yield process, f"{address}/v1/chat/completions"
