"""Where keys and values lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.language.decoding.arena import Arena

_SLOTS = 12


def _arena() -> Arena:
    return Arena(layers=2, slots=_SLOTS, kv_heads=2, head_size=3, dtype=torch.float32, device=torch.device("cpu"))


def _filled() -> Arena:
    """Return an arena whose keys in slot n of layer l are 100 l + n, and whose values are less by a half."""
    arena = _arena()
    for layer in range(2):
        keys = (100.0 * layer + torch.arange(_SLOTS))[:, None, None].expand(-1, 2, 3)
        arena.write(layer, torch.arange(_SLOTS), keys, keys - 0.5)
    return arena


def test_what_is_written_into_a_slot_is_there_and_nowhere_else() -> None:
    arena = _arena()
    keys, values = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    arena.write(1, torch.tensor([7, 4]), keys, values)
    assert torch.equal(arena.keys[1][[7, 4]], keys)
    assert torch.equal(arena.values[1][[7, 4]], values)
    assert not arena.keys[0].any()
    assert not arena.keys[1][[0, 1, 2, 3, 5, 6, 8, 9, 10, 11]].any()


@given(source=st.integers(0, _SLOTS), target=st.integers(0, _SLOTS), count=st.integers(0, _SLOTS))
def test_a_move_copies_keys_and_values_of_all_layers_even_onto_themselves(source: int, target: int, count: int) -> None:
    count = min(count, _SLOTS - max(source, target))
    arena = _filled()
    arena.move(source, target, count)
    expected = list(range(_SLOTS))
    expected[target : target + count] = expected[source : source + count]
    for layer in range(2):
        assert arena.keys[layer][:_SLOTS, 0, 0].tolist() == [100 * layer + slot for slot in expected]
        assert torch.equal(arena.values[layer][:_SLOTS], arena.keys[layer][:_SLOTS] - 0.5)


@pytest.mark.parametrize("slots", [0, 5])
def test_one_slot_lies_behind_the_others_for_what_fills_a_shape(slots: int) -> None:
    arena = Arena(layers=1, slots=slots, kv_heads=1, head_size=2, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert arena.slots == slots
    assert len(arena.keys[0]) == slots + 1


def test_a_slot_takes_a_key_and_a_value_of_each_layer() -> None:
    assert _arena().slot_bytes == 2 * 2 * 2 * 3 * 4
