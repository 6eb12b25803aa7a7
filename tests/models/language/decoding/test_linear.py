"""Products with packed weights: close to the dense ones, and the same for a token in whatever company."""

import pytest
import torch

from models.language.decoding import linear
from models.language.decoding.linear import dense, eight_bit, four_bit

_OURS = pytest.mark.skipif(not linear.FASTEST, reason="no C compiler where Baton was installed, or no AVX-512")


@pytest.fixture(params=["ours", "torch", "dense"])
def kernel(request, monkeypatch):
    """Runs a test with each of the ways there are to multiply on this machine."""
    if request.param == "ours" and not linear.FASTEST:
        pytest.skip("no C compiler where Baton was installed, or no AVX-512")
    monkeypatch.setattr(linear, "FASTEST", request.param == "ours")
    if request.param == "torch" and not linear.torch_has_four_bits():
        pytest.skip("torch multiplies by four bits only with AVX2")
    if request.param == "dense":
        monkeypatch.setattr(linear, "torch_has_four_bits", lambda: False)
    return request.param


def _four(outer: int, inner: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(outer + inner)
    scales = (torch.rand(outer, inner // 32, generator=made) * 0.02 + 0.001).half()
    codes = torch.randint(0, 16, (outer, inner), dtype=torch.uint8, generator=made)
    return codes, scales, (-8 * scales.float() * torch.rand(scales.shape, generator=made)).half()


def _dense_of(codes: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor | float) -> torch.Tensor:
    each = codes.float().view(*scales.shape, 32) * scales.float()[..., None]
    return (each + (minimums.float()[..., None] if isinstance(minimums, torch.Tensor) else minimums)).view(codes.shape)


def _input(tokens: int, inner: int) -> torch.Tensor:
    return torch.randn(tokens, inner, generator=torch.Generator().manual_seed(tokens))


def _error(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out - exact).norm() / exact.norm())


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize(("outer", "inner"), [(16, 32), (48, 96), (960, 576)])
def test_four_bits_are_close_to_the_dense_product(kernel, outer, inner, tokens):
    weights, seen = _four(outer, inner), _input(tokens, inner)
    exact = seen @ _dense_of(*weights).t()
    assert _error(four_bit(*weights)(seen), exact) < {"ours": 0.02, "torch": 0.01, "dense": 1e-6}[kernel]


@pytest.mark.parametrize("tokens", [1, 3, 8, 20])
@pytest.mark.parametrize(("outer", "inner"), [(16, 32), (80, 64), (500, 576)])
def test_eight_bits_are_the_dense_product_but_for_its_last_digits(kernel, outer, inner, tokens):
    codes = torch.randint(-128, 128, (outer, inner), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    _, scales, _ = _four(outer, inner)
    seen = _input(tokens, inner)
    exact = seen @ _dense_of(codes, scales, 0.0).t()
    assert _error(eight_bit(codes, scales)(seen), exact) < 1e-4


@pytest.mark.parametrize("outer", [1, 15, 17, 340])
def test_rows_need_not_fill_a_tile(kernel, outer):
    weights, seen = _four(outer, 64), _input(5, 64)
    assert _error(four_bit(*weights)(seen), seen @ _dense_of(*weights).t()) < 0.02


def test_the_extreme_values_do_not_overflow(kernel):
    codes = torch.full((16, 64), 15, dtype=torch.uint8)
    scales, minimums = torch.ones(16, 2).half(), torch.zeros(16, 2).half()
    seen = torch.full((1, 64), -1e4)
    out = four_bit(codes, scales, minimums)(seen)
    torch.testing.assert_close(out, torch.full((1, 16), -15.0 * 64 * 1e4), rtol=0.005, atol=0)
    lowest = eight_bit(torch.full((16, 64), -128, dtype=torch.int8), scales)(seen)
    torch.testing.assert_close(lowest, torch.full((1, 16), 128.0 * 64 * 1e4), rtol=0.001, atol=0)


def test_nothing_comes_of_nothing(kernel):
    weights = _four(32, 64)
    assert four_bit(*weights)(torch.zeros(2, 64)).abs().max() == 0
    assert four_bit(*weights)(torch.zeros(0, 64)).shape == (0, 32)


@_OURS
@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_is_multiplied_alike_in_whatever_company(bits):
    codes, scales, minimums = _four(96, 576)
    product = four_bit(codes, scales, minimums) if bits == 4 else eight_bit(codes.view(torch.int8), scales)
    seen = _input(40, 576)
    together = product(seen)
    for first in range(9):
        for count in range(1, 12):
            assert torch.equal(product(seen[first : first + count]), together[first : first + count])


@_OURS
def test_the_number_of_threads_changes_nothing():
    product, seen = four_bit(*_four(512, 96)), _input(9, 96)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(product(seen))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results)


def test_weights_one_after_another_make_one_product(kernel):
    first, second = _four(32, 64), _four(48, 64)
    fused = four_bit(*(torch.cat(both) for both in zip(first, second, strict=True)))
    seen = _input(3, 64)
    apart = torch.cat((four_bit(*first)(seen), four_bit(*second)(seen)), -1)
    torch.testing.assert_close(fused(seen), apart, rtol=1e-5, atol=1e-5)


def test_a_bias_is_added(kernel):
    weights, bias, seen = _four(32, 64), torch.arange(32.0), _input(3, 64)
    torch.testing.assert_close(four_bit(*weights, bias)(seen), four_bit(*weights)(seen) + bias)
    _, scales, _ = weights
    codes = weights[0].view(torch.int8)
    torch.testing.assert_close(eight_bit(codes, scales, bias)(seen), eight_bit(codes, scales)(seen) + bias)
    weight = _dense_of(*weights)
    torch.testing.assert_close(dense(weight, bias)(seen), seen @ weight.t() + bias)


def test_what_comes_out_is_of_the_dtype_that_went_in(kernel):
    assert four_bit(*_four(32, 64))(_input(2, 64).bfloat16()).dtype == torch.bfloat16


def test_a_view_with_gaps_is_read_as_what_it_shows(kernel):
    product, seen = four_bit(*_four(32, 64)), _input(4, 128)[:, ::2]
    torch.testing.assert_close(product(seen), product(seen.contiguous()))


@_OURS
def test_an_input_of_another_width_is_refused():
    with pytest.raises(ValueError, match="takes 64 values"):
        four_bit(*_four(32, 64))(_input(1, 32))


@_OURS
def test_what_comes_before_and_after_is_done_in_the_same_go():
    product = four_bit(*_four(96, 64), torch.arange(96.0))
    seen, scale = _input(5, 64) * 3, torch.rand(64)
    normed = torch.nn.functional.rms_norm(seen, (64,), scale, 1e-5)
    torch.testing.assert_close(product.of_normed(seen, scale, 1e-5), product(normed), rtol=1e-3, atol=1e-3)
    total = _input(5, 96)
    before, both = total.clone(), torch.cat((seen * 5, normed), -1)
    product.add_to(total, seen)
    torch.testing.assert_close(total, before + product(seen))
    product.add_gated_to(total, both)
    gated = torch.nn.functional.silu(seen * 5) * normed
    torch.testing.assert_close(total, before + product(seen) + product(gated), rtol=1e-3, atol=1e-3)


@_OURS
def test_it_does_not_add_to_what_has_gaps():
    with pytest.raises(ValueError, match="gaps"):
        four_bit(*_four(32, 64)).add_to(torch.zeros(2, 64)[:, ::2], _input(2, 64))
