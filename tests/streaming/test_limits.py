import pytest

from memory.keys import Key, RequestDefaults
from models.clock import ManualClock
from models.errors import Overloaded
from streaming.limits import READS_PER_MINUTE, RateLimits


def _key(rate: int | None, key_id: str = "a") -> Key:
    return Key(
        key_id=key_id,
        tenant="t",
        name="",
        requests_per_minute=rate,
        defaults=RequestDefaults(),
        created_ms=0,
        revoked_ms=None,
    )


def test_a_key_has_a_minutes_requests_at_once_and_then_at_its_rate() -> None:
    clock = ManualClock()
    rates = RateLimits(clock)
    for _ in range(3):
        rates.take(_key(3))
    with pytest.raises(Overloaded):
        rates.take(_key(3))
    clock.advance(19)
    with pytest.raises(Overloaded):
        rates.take(_key(3))
    clock.advance(1)
    rates.take(_key(3))


def test_keys_do_not_share_a_rate_and_one_without_a_rate_is_unlimited() -> None:
    rates = RateLimits(ManualClock())
    rates.take(_key(1, "a"))
    rates.take(_key(1, "b"))
    for _ in range(100):
        rates.take(_key(None))
        rates.take(None)


def test_reading_is_bounded_apart_from_what_the_rate_counts() -> None:
    rates = RateLimits(ManualClock())
    for _ in range(READS_PER_MINUTE):
        rates.take(_key(1), reads=True)
    rates.take(_key(1))
    for reads in (True, False):
        with pytest.raises(Overloaded):
            rates.take(_key(1), reads=reads)
