import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.tiny_llama import make_model, make_tokenizer
from torch import Tensor

from models.errors import BadInput, Internal, NotFound
from models.language.decoding.adapters import Adapters, load_adapters
from models.language.decoding.decoder import MATRICES, Batch, Decoder, Span
from models.language.decoding.loading import decoder_of

# What peft asks a model as it wraps it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "whole": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "attention": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": ["o_proj", "up_proj", "down_proj"]},
    "patterns": {
        "r": 3,
        "target_modules": ["k_proj", "gate_proj"],
        "rank_pattern": {"gate_proj": 5},
        "alpha_pattern": {r"layers.1.self_attn.k_proj": 9},
    },
    "second_layer": {"r": 4, "target_modules": ALL, "layers_to_transform": [1]},
}
NAMES = tuple(CONFIGS)

rows_of_batches = st.lists(
    st.tuples(st.sampled_from([None, *NAMES]), st.integers(1, 9), st.integers(0, 2**16)), min_size=1, max_size=8
)


@pytest.fixture(scope="module")
def trained() -> PeftModel:
    """Return the tiny model with adapters of all sorts, none of which leaves it as it was."""
    (first, config), *rest = ((name, _config(**fields)) for name, fields in CONFIGS.items())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(make_model(make_tokenizer()), config, adapter_name=first)
        for name, config in rest:
            model.add_adapter(name, config)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.2)
    assert isinstance(model, PeftModel)
    return model.eval()


@pytest.fixture(scope="module")
def folders(trained: PeftModel, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    trained.save_pretrained(str(folder), save_embedding_layers=False)
    return {name: str(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of(make_model(make_tokenizer()))


@pytest.fixture(scope="module", params=["as on a CPU", "as on a GPU"])
def adapters(request: pytest.FixtureRequest, folders: Mapping[str, str], decoder: Decoder) -> Adapters:
    loaded = load_adapters(folders, decoder)
    loaded._by_runs = request.param == "as on a CPU"
    return loaded


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_batches)
def test_every_row_of_a_mixed_batch_is_what_peft_makes_of_it_alone(
    adapters: Adapters, trained: PeftModel, decoder: Decoder, rows: list[tuple[str | None, int, int]]
) -> None:
    texts = [_tokens(length, seed) for _, length, seed in rows]
    hidden = _run(decoder, texts, adapters, [name for name, *_ in rows])
    for (name, *_), text, own in zip(rows, texts, hidden, strict=True):
        expected = _peft(trained, name, text)
        torch.testing.assert_close(decoder.logits(own), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_batches)
def test_a_row_without_adapter_is_to_the_bit_what_it_is_where_none_is_loaded(
    adapters: Adapters, decoder: Decoder, rows: list[tuple[str | None, int, int]]
) -> None:
    texts = [_tokens(length, seed) for _, length, seed in rows]
    names = [name for name, *_ in rows]
    mixed, plain = _run(decoder, texts, adapters, names), _run(decoder, texts)
    for name, own, without in zip(names, mixed, plain, strict=True):
        assert torch.equal(own, without) == (name is None)


def test_every_matrix_of_a_layer_can_be_adapted(adapters: Adapters) -> None:
    assert {matrix for layer, matrix in adapters._stacks if layer == 0} == set(MATRICES)


def test_what_overflows_for_one_row_stays_there(adapters: Adapters) -> None:
    seen = torch.ones(2, 32)
    seen[0] = torch.finfo(torch.float32).max
    mask = adapters.mask(torch.tensor([adapters.index("whole"), 0]))
    assert mask is not None
    out = adapters.apply(0, "o", seen, torch.ones(2, 32), mask)
    assert not out[0].isfinite().all()
    assert torch.equal(out[1], torch.ones(32))


def test_a_batch_that_names_no_adapter_needs_no_mask(folders: Mapping[str, str], decoder: Decoder) -> None:
    loaded = load_adapters(folders, decoder)
    assert loaded.mask(None) is None
    assert loaded.mask(torch.zeros(5, dtype=torch.int64)) is None
    assert load_adapters({}, decoder).mask(torch.zeros(5, dtype=torch.int64)) is None


def test_neighbouring_rows_of_one_adapter_are_one_run(folders: Mapping[str, str], decoder: Decoder) -> None:
    mask = load_adapters(folders, decoder).mask(torch.tensor([2, 2, 2, 0, 1, 2]))
    assert mask is not None
    assert mask.tolist() == [[0, 3, 2], [4, 5, 1], [5, 6, 2]]


def test_adapters_are_numbered_from_one_and_none_is_nought(adapters: Adapters) -> None:
    assert adapters.names == NAMES
    assert [adapters.index(name) for name in (None, *NAMES)] == [0, 1, 2, 3, 4, 5]


def test_an_unknown_adapter_is_answered_with_those_there_are(adapters: Adapters, decoder: Decoder) -> None:
    with pytest.raises(NotFound, match=r"no adapter 'french'. Known adapters: whole, attention, rslora") as caught:
        adapters.index("french")
    assert caught.value.field == "adapter"
    with pytest.raises(NotFound, match="This model has none"):
        load_adapters({}, decoder).index("french")


def test_adapters_take_the_dtype_of_the_model(folders: Mapping[str, str]) -> None:
    coarse = decoder_of(make_model(make_tokenizer()).to(torch.bfloat16))
    loaded = load_adapters(folders, coarse)
    [hidden] = _run(coarse, [_tokens(5, 0)], loaded, ["whole"])
    assert hidden.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "it sets use_dora, and only plain low-rank"),
        ({"modules_to_save": ["lm_head"], "bias": "all"}, "it sets modules_to_save, bias='all'"),
        ({"lora_bias": True}, "it sets lora_bias"),
        ({"alora_invocation_tokens": [1, 2]}, "it sets alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', which changed the model's own"),
        (
            {"r": 2},
            r"of \(4, \d+\) and \(\d+, 4\), and with its rank and this model it must be of \(2, \d+\) and \(\d+, 2\)",
        ),
    ],
    ids=["dora", "modules_to_save", "lora_bias", "alora", "pissa", "another rank"],
)
def test_what_is_more_than_low_rank_products_is_refused(
    folders: Mapping[str, str], decoder: Decoder, tmp_path: Path, change: Mapping[str, Any], reason: str
) -> None:
    folder = _changed(folders["whole"], tmp_path, config=change)
    with pytest.raises(BadInput, match=reason) as caught:
        load_adapters({"mine": folder}, decoder)
    assert "'mine'" in caught.value.message
    assert folder in caught.value.message


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop(FIRST), "only one of lora_A and lora_B"),
        (lambda weights: weights.clear(), "holds no weights"),
        (lambda weights: _also(weights, FIRST.replace("layers.0", "layers.7")), "this model has 2 layers"),
        (lambda weights: _also(weights, "base_model.model.lm_head.lora_A.weight"), "Adapted can be q_proj, k_proj"),
        (
            lambda weights: _also(weights, FIRST.replace("model.layers", "vision.layers")),
            "of the layers that read text",
        ),
        (lambda weights: weights[FIRST].fill_(torch.nan), "no finite numbers in torch.float32"),
    ],
    ids=["half a pair", "nothing", "too deep", "the head", "eyes", "no number"],
)
def test_weights_that_do_not_fit_the_model_are_refused(
    folders: Mapping[str, str],
    decoder: Decoder,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    reason: str,
) -> None:
    folder = _changed(folders["whole"], tmp_path, weights=change)
    with pytest.raises(BadInput, match=reason):
        load_adapters({"mine": folder}, decoder)


def test_another_kind_of_adapter_is_refused(folders: Mapping[str, str], decoder: Decoder, tmp_path: Path) -> None:
    folder = _changed(folders["whole"], tmp_path)
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2).save_pretrained(folder)
    with pytest.raises(BadInput, match=r"kind .*PROMPT_TUNING, and only LoRA is known"):
        load_adapters({"mine": folder}, decoder)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_nothing_is_fetched_and_no_pickle_read_where_a_file_is_missing(
    folders: Mapping[str, str], decoder: Decoder, tmp_path: Path, missing: str
) -> None:
    folder = _changed(folders["whole"], tmp_path)
    (tmp_path / missing).unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(BadInput, match=f"there is no {missing}. Name a folder"):
        load_adapters({"mine": folder}, decoder)


@pytest.mark.parametrize("broken", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_no_such_thing_is_a_fault_of_ours(
    folders: Mapping[str, str], decoder: Decoder, tmp_path: Path, broken: str
) -> None:
    folder = _changed(folders["whole"], tmp_path)
    (tmp_path / broken).write_text("neither of the two")
    with pytest.raises(Internal, match=r"'mine' in .* cannot be read"):
        load_adapters({"mine": folder}, decoder)


def _config(**fields: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **fields)


def _tokens(length: int, seed: int) -> Tensor:
    return torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(seed))


def _peft(model: PeftModel, name: str | None, text: Tensor) -> Tensor:
    if name is None:
        with model.disable_adapter():
            return model(input_ids=text[None]).logits[0]
    model.set_adapter(name)
    return model(input_ids=text[None]).logits[0]


def _run(
    decoder: Decoder, texts: Sequence[Tensor], adapters: Adapters | None = None, names: Sequence[str | None] = ()
) -> Sequence[Tensor]:
    """Return the hidden states of each text, read in one batch with its adapter."""
    lengths = [len(text) for text in texts]
    total = sum(lengths)
    offsets = accumulate(lengths[:-1], initial=0)
    mask = None
    if adapters is not None:
        decoder.low_rank = adapters.apply
        indices = torch.tensor([adapters.index(name) for name in names])
        mask = adapters.mask(indices.repeat_interleave(torch.tensor(lengths)))
    batch = Batch(
        tokens=torch.cat(list(texts)),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        slots=torch.arange(total),
        spans=tuple(
            Span(offset=offset, count=length, start=offset, length=length)
            for offset, length in zip(offsets, lengths, strict=True)
        ),
    )
    return decoder.run(batch, decoder.arena(total), mask=mask).split(lengths)


def _changed(
    source: str,
    target: Path,
    config: Mapping[str, Any] | None = None,
    weights: Callable[[dict[str, Tensor]], object] = len,
) -> str:
    """Copy an adapter, changed."""
    told = json.loads((Path(source) / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**told, **(config or {})}))
    held = load_file(Path(source) / "adapter_model.safetensors")
    weights(held)
    save_file(held, target / "adapter_model.safetensors")
    return str(target)


def _also(weights: dict[str, Tensor], key: str) -> None:
    weights[key] = weights[FIRST].clone()
