"""Adapters are asked for behind the model's name, over a real worker and a small model of its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, get_peft_model
from support.app import Served, serving_app
from support.tiny_llama import make_model, make_tokenizer, save_tiny_llama

from streaming.limits import SurfaceLimits

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # What peft asks a model as it wraps it.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def _trained(folder: Path) -> Path:
    torch.manual_seed(3)
    model = get_peft_model(
        make_model(make_tokenizer()), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=64, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    weights, pilot = save_tiny_llama(folder / "weights"), _trained(folder / "pilot")
    (folder / "cards.toml").write_text(
        '[cards.ferry]\nengine = "transformers"\ncontext_tokens = 512\nparameters = 1000\n'
        f"sources = [{json.dumps(f'file:{weights}')}]\n"
        f"options = {{ threads = 1, adapters = {{ pilot = {json.dumps(str(pilot))} }} }}\n"
        '[aliases]\nboat = "ferry"\n'
    )
    settings = {"cache": folder / "cache", "catalog": folder / "cards.toml", "models": ("scripted", "ferry")}
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), **settings) as running:
        yield running


async def _answer(served: Served, model: str) -> Any:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Who goes there?"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    async with served.http() as client:
        return (await client.post("/v1/chat/completions", json=body)).json()


async def test_an_adapter_is_asked_for_behind_the_models_name_and_answers_otherwise(served: Served) -> None:
    plain, adapted = [await _answer(served, name) for name in ("ferry", "ferry:pilot")]
    assert plain["model"] == adapted["model"] == "ferry"
    assert plain["choices"][0]["message"]["content"] != adapted["choices"][0]["message"]["content"]
    again = await _answer(served, "boat:pilot")
    assert again["choices"][0]["message"]["content"] == adapted["choices"][0]["message"]["content"]


async def test_an_adapter_that_there_is_not_is_answered_with_those_there_are(served: Served) -> None:
    error = (await _answer(served, "ferry:captain"))["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "ferry:pilot" in error["message"]


async def test_adapters_are_listed(served: Served) -> None:
    async with served.http() as client:
        listed = {model["id"]: model["baton"] for model in (await client.get("/v1/models")).json()["data"]}
    assert listed["ferry:pilot"] == listed["boat:pilot"] == {"alias_of": "ferry", "adapter": "pilot"}
    assert listed["ferry"]["adapters"] == ["pilot"]
