"""A GGUF is converted into what the engine loads, and says in one line why it was not."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from support.tiny_gguf import write_gguf
from support.tiny_llama import CHAT_TEMPLATE, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from models.language.decoding.packed import packer
from models.supply.convert import main

_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "packed.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer()
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    return write_gguf(path, make_model(tokenizer), tokenizer, template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    command = [sys.executable, "-m", "models.supply.convert", str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_the_folder_holds_what_the_engine_loads_and_nothing_else(converted):
    assert {path.name for path in converted.iterdir()} == _FILES


def test_the_model_scores_as_it_did_but_for_the_rounding(converted):
    tokenizer = make_tokenizer()
    prompt = torch.tensor([tokenizer("the sea and the sky are one thing")["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(converted, dtype="float32", use_safetensors=True)
    with torch.inference_mode():
        before, after = make_model(tokenizer)(prompt).logits[0], model(prompt).logits[0]
    # Rows of a query or a key in the wrong order bring this to a half and below.
    assert torch.nn.functional.cosine_similarity(before, after).min() > 0.99


def test_weights_are_kept_in_half_the_bytes(converted):
    assert json.loads((converted / "config.json").read_text())["dtype"] == "bfloat16"


def test_every_matrix_is_kept_in_its_blocks_too(converted):
    model = AutoModelForCausalLM.from_pretrained(converted, dtype="float32", use_safetensors=True)
    pack = packer(converted)
    nothing, unit = torch.empty(0), torch.eye(model.config.hidden_size)
    matrices = {
        name: weight
        for name, weight in model.state_dict().items()
        if weight.ndim == 2 and weight.shape[1] == len(unit) and name != "model.embed_tokens.weight"
    }
    assert len(matrices) == 6 * model.config.num_hidden_layers + 1
    for name, weight in matrices.items():  # without blocks the product would be that of nothing
        torch.testing.assert_close(pack([name], nothing, None)(unit).t(), weight, rtol=0.005, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "the sea and the sky",
        "one   2  34\n\n 5",
        "x = 12 + 345",
        "naïve 日本語 👩‍🚀",
        "<|im_start|>user\nWho goes there?<|im_end|>\n",
    ],
)
def test_text_becomes_the_same_tokens_and_text_again(converted, text):
    before, after = make_tokenizer(), PreTrainedTokenizerFast.from_pretrained(converted)
    tokens = before(text)["input_ids"]
    assert after(text)["input_ids"] == tokens
    assert after.decode(tokens) == before.decode(tokens) == text


def test_special_tokens_and_the_chat_template_are_kept(converted):
    before, after = make_tokenizer(), PreTrainedTokenizerFast.from_pretrained(converted)
    assert after.chat_template == CHAT_TEMPLATE
    assert (after.bos_token, after.eos_token, after.unk_token) == (before.bos_token, before.eos_token, before.unk_token)
    end = json.loads((converted / "generation_config.json").read_text())["eos_token_id"]
    assert end == before.eos_token_id


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Converts what must not be convertible; returns the line that says why."""
    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, getattr(gguf, name))  # what `main` puts in their place goes with the test

    def refuse(source: Path) -> str:
        assert main([str(source), str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert source.name in err
        return err

    return refuse


def test_a_file_that_is_not_a_gguf_is_refused(refused, tmp_path):
    (tmp_path / "odd.gguf").write_bytes(b"PK\x03\x04" + bytes(64))
    assert "not a whole GGUF" in refused(tmp_path / "odd.gguf")


def test_a_file_that_is_not_there_is_refused(refused, tmp_path):
    assert "No such file" in refused(tmp_path / "gone.gguf")


@pytest.mark.parametrize(
    "share", [0.0, 0.01, 0.05, 0.5], ids=["empty", "in its header", "in its words", "in its weights"]
)
def test_a_file_that_is_cut_off_is_refused(refused, source, tmp_path, share):
    whole = source.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
    assert "cannot be converted" in refused(tmp_path / "cut.gguf")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_model_without_a_chat_template_is_refused(refused, tmp_path):
    tokenizer = make_tokenizer()
    path = write_gguf(tmp_path / "base.gguf", make_model(tokenizer), tokenizer, template=None)
    assert "chat template" in refused(path)
