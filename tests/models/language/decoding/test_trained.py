"""The trained drafters: what they guess, what they remember of a request, and the files that come with Baton."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.tiny_decoding import Ask, RandomPolicy, Tiny

from models.errors import BadInput
from models.language.decoding.decoder import Batch, Decoder, Span
from models.language.decoding.drafters import Context
from models.language.decoding.drafters.trained import (
    PLACE_TOKENS,
    READ_TOKENS,
    TrainedDrafter,
    load_trained,
    shipped_for,
)
from models.language.decoding.drafters.weights import (
    DraftShape,
    DraftWeights,
    LayerWeights,
    StopHead,
    fingerprint,
    fits,
    load_draft,
    save_draft,
    shipped,
)
from models.owner import Owner

_VOCABULARY = 120
_KINDS = ("pair", "early_exit")


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


def _weights(target: Decoder, kind: str, *, bias: float = -20.0) -> DraftWeights:
    """Return random weights for `target`, whose stop head lets everything pass unless `bias` is high."""
    shape, chance = target.shape, torch.Generator().manual_seed(1)
    hidden, inner = shape.hidden_size, shape.intermediate_size

    def matrix(outer: int, width: int) -> torch.Tensor:
        return torch.randn(outer, width, generator=chance) * 0.3

    layer = LayerWeights(
        input_norm=torch.ones(hidden),
        q=matrix(shape.heads * shape.head_size, hidden),
        k=matrix(shape.kv_heads * shape.head_size, hidden),
        v=matrix(shape.kv_heads * shape.head_size, hidden),
        o=matrix(hidden, shape.heads * shape.head_size),
        post_norm=torch.ones(hidden),
        gate=matrix(inner, hidden),
        up=matrix(inner, hidden),
        down=matrix(hidden, inner),
    )
    return DraftWeights(
        shape=DraftShape(
            kind="early_exit" if kind == "early_exit" else "pair",
            base="tiny",
            fingerprint=fingerprint(target.embedding),
            entry=1 if kind == "early_exit" else 0,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            eps=shape.norm_eps,
            rope_theta=10000.0,
        ),
        layers=(layer,),
        norm=torch.ones(hidden),
        vocabulary=torch.arange(3, 3 + _VOCABULARY),
        stop=StopHead(weight=torch.zeros(hidden + 1), bias=torch.tensor(bias)),
        card={"steps": 1},
    )


def _drafter(target: Decoder, place: Path, kind: str = "pair", *, rows: int = 4, bias: float = -20.0) -> TrainedDrafter:
    path = place / f"{kind}.safetensors"
    save_draft(_weights(target, kind, bias=bias), path)
    return load_trained(path, target, rows=rows)


def _context(length: int, *, seed: int = 0) -> Context:
    tokens = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Context(owner=Owner("ada"), tokens=tokens, prompt_length=length)


def _fresh(target: Decoder, place: Path, kind: str, tokens: Sequence[int], most: int) -> list[int]:
    """Return what a drafter guesses that has seen nothing before."""
    drafter = _drafter(target, place, kind)
    context = Context(owner=Owner("ada"), tokens=list(tokens), prompt_length=len(tokens))
    drafter.join(context)
    return drafter.draft([(context, most)])[0]


@pytest.mark.parametrize("kind", _KINDS)
def test_each_guess_is_the_likeliest_token_after_the_text_and_the_guesses_before_it(
    tiny: Tiny, tmp_path: Path, kind: str
):
    drafter, context = _drafter(tiny.decoder, tmp_path, kind), _context(20)
    drafter.join(context)
    drafted = drafter.draft([(context, 5)])[0]
    weights = load_draft(tmp_path / f"{kind}.safetensors", tiny.decoder.embedding, dtype=torch.float32)
    decoder = drafter._decoder
    text = torch.tensor(context.tokens + drafted)
    places = torch.arange(len(text))
    span = Span(offset=0, count=len(text), start=0, length=len(text))
    hidden = decoder.run(Batch(tokens=text, positions=places, slots=places, spans=(span,)), decoder.arena(len(text)))
    assert weights.vocabulary[decoder.logits(hidden).argmax(-1)].tolist()[19:24] == drafted


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("accepted", range(5))
def test_what_was_refused_leaves_no_trace(tiny: Tiny, tmp_path: Path, kind: str, accepted: int):
    drafter, context = _drafter(tiny.decoder, tmp_path, kind), _context(20)
    drafter.join(context)
    first = drafter.draft([(context, 4)])[0]
    context.tokens += [*first[:accepted], 200]
    drafter.observe(context, 4, accepted)
    assert drafter.draft([(context, 6)])[0] == _fresh(tiny.decoder, tmp_path, kind, context.tokens, 6)


def test_requests_do_not_see_each_other(tiny: Tiny, tmp_path: Path):
    drafter = _drafter(tiny.decoder, tmp_path)
    contexts = [_context(length, seed=length) for length in (3, 40, 17)]
    for context in contexts:
        drafter.join(context)
    together = drafter.draft([(context, most) for context, most in zip(contexts, (6, 2, 4), strict=True)])
    alone = [_fresh(tiny.decoder, tmp_path, "pair", context.tokens, 6) for context in contexts]
    assert together == [alone[0], alone[1][:2], alone[2][:4]]


def test_a_request_that_outgrows_its_place_goes_on_with_its_latest_tokens(tiny: Tiny, tmp_path: Path):
    drafter, context = _drafter(tiny.decoder, tmp_path), _context(30)
    drafter.join(context)
    for _ in range(PLACE_TOKENS // 4):
        context.tokens += [*drafter.draft([(context, 8)])[0][:7], 200]
    assert len(context.tokens) > PLACE_TOKENS
    assert len(drafter.draft([(context, 8)])[0]) == 8


def test_of_a_long_prompt_the_end_is_read(tiny: Tiny, tmp_path: Path):
    drafter, context = _drafter(tiny.decoder, tmp_path), _context(4 * READ_TOKENS)
    drafter.join(context)
    drafted = drafter.draft([(context, 4)])[0]
    assert drafted == _fresh(tiny.decoder, tmp_path, "pair", context.tokens[-READ_TOKENS:], 4)


def test_who_finds_no_room_gets_no_draft_until_somebody_leaves(tiny: Tiny, tmp_path: Path):
    drafter = _drafter(tiny.decoder, tmp_path, rows=1)
    first, second = _context(5, seed=1), _context(5, seed=2)
    drafter.join(first)
    drafter.join(second)
    assert drafter.forecast([(first, 3), (second, 3)])[1] == []
    assert [len(draft) for draft in drafter.draft([(first, 3), (second, 3)])] == [3, 0]
    drafter.leave(first)
    drafter.leave(second)
    drafter.join(second)
    assert drafter.draft([(second, 3)])[0] == _fresh(tiny.decoder, tmp_path, "pair", second.tokens, 3)


def test_nothing_is_guessed_that_the_stop_head_expects_to_be_refused(tiny: Tiny, tmp_path: Path):
    context = _context(10)
    refused, unsure = _drafter(tiny.decoder, tmp_path, bias=20.0), _drafter(tiny.decoder, tmp_path, bias=-1.4)
    lengths = []
    for drafter in (refused, unsure):
        drafter.join(context)
        lengths.append(len(drafter.draft([(context, 12)])[0]))
    # At a fifth of chance each, four guesses all hold with 0.41 and five with 0.33: more than 0.6 is too likely a refusal.
    assert lengths == [0, 4]


@pytest.mark.parametrize("kind", _KINDS)
def test_what_is_written_is_what_the_model_alone_would_write(tiny: Tiny, tmp_path: Path, kind: str):
    drafter = _drafter(tiny.decoder, tmp_path, kind, rows=2)
    bench = tiny.bench(drafters=[drafter], policy=RandomPolicy(7))
    asks = [
        Ask(prompt=tuple(_context(length, seed=length).tokens), limit=24, temperature=warmth, seed=length)
        for length, warmth in ((4, 0.0), (30, 0.8), (11, 0.0), (60, 1.2))
    ]
    told = [bench.ask(ask) for ask in asks]
    bench.finish()
    assert [one.tokens for one in told] == [tiny.alone(ask).tokens for ask in asks]


def test_a_drafter_for_another_model_is_refused(tiny: Tiny, tmp_path: Path):
    save_draft(_weights(tiny.decoder, "pair"), tmp_path / "draft.safetensors")
    other = tiny.decoder.embedding + 1
    assert fits(tmp_path / "draft.safetensors", tiny.decoder.embedding)
    assert not fits(tmp_path / "draft.safetensors", other)
    assert not fits(tmp_path / "draft.safetensors", other[:, :16])
    with pytest.raises(BadInput, match="trained for tiny"):
        load_draft(tmp_path / "draft.safetensors", other, dtype=torch.float32)


def test_a_file_that_is_no_drafter_is_refused(tiny: Tiny, tmp_path: Path):
    (tmp_path / "odd.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(BadInput, match="no trained drafter"):
        load_draft(tmp_path / "odd.safetensors", tiny.decoder.embedding, dtype=torch.float32)


def test_rounding_to_eight_bits_changes_a_weight_by_less_than_half_a_step(tiny: Tiny, tmp_path: Path):
    weights = _weights(tiny.decoder, "pair")
    save_draft(weights, tmp_path / "draft.safetensors")
    rounded = load_draft(tmp_path / "draft.safetensors", tiny.decoder.embedding, dtype=torch.float32)
    exact = weights.layers[0].gate
    steps = exact.abs().amax(1, keepdim=True) / 127
    assert ((rounded.layers[0].gate - exact).abs() <= steps * 0.501).all()


def test_what_comes_with_baton_is_small_and_says_how_it_was_made():
    sizes = {}
    for path in shipped():
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["draft"])
        sizes[about["kind"]] = path.stat().st_size
        assert about["card"]["steps"] > 0
        assert about["card"]["held_out"]["4"]["prompts"] >= 200
        assert (path.parent / "README.md").is_file()
    assert sizes["pair"] <= 8e6
    assert sizes["early_exit"] <= 4e6


def test_none_of_it_is_used_for_another_model(tiny: Tiny):
    assert shipped_for(tiny.decoder, {"pair", "early_exit"}, rows=1) == []
