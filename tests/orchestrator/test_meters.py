"""What is counted of turns, under the tenant who alone is shown it."""

import pytest
from prometheus_client import CollectorRegistry

from agents.events import Fault
from memory.log import EndState
from orchestrator.events import TurnEnded, Usage
from orchestrator.meters import Meters


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def meters(registry: CollectorRegistry) -> Meters:
    return Meters(registry)


def ended(state: EndState = "finished", **more: object) -> TurnEnded:
    return TurnEnded(turn_id="turn_1", generation=1, state=state, **more)  # type: ignore[arg-type]


def test_turns_tokens_and_times_are_counted_for_their_own_tenant(meters: Meters, registry: CollectorRegistry) -> None:
    usage = Usage(input_tokens=7, output_tokens=2)
    for tenant in ("ours", "ours", "theirs"):
        meters.turn_ended(tenant, ended(usage=usage, first_delta_ms=250, duration_ms=1_500))
    assert registry.get_sample_value("baton_turns_total", {"tenant": "ours", "state": "finished"}) == 2
    assert registry.get_sample_value("baton_turns_total", {"tenant": "theirs", "state": "finished"}) == 1
    assert registry.get_sample_value("baton_tokens_total", {"tenant": "ours", "direction": "in"}) == 14
    assert registry.get_sample_value("baton_tokens_total", {"tenant": "ours", "direction": "out"}) == 4
    assert registry.get_sample_value("baton_first_delta_seconds_sum", {"tenant": "ours"}) == 0.5
    assert registry.get_sample_value("baton_turn_seconds_sum", {"tenant": "ours"}) == 3.0


def test_a_turn_that_failed_is_counted_by_its_code(meters: Meters, registry: CollectorRegistry) -> None:
    fault = Fault(code="overloaded", message="No room.", retryable=True)
    meters.turn_ended("ours", ended("failed", fault=fault))
    assert registry.get_sample_value("baton_turns_total", {"tenant": "ours", "state": "failed"}) == 1
    assert registry.get_sample_value("baton_turn_faults_total", {"tenant": "ours", "code": "overloaded"}) == 1


def test_a_turn_without_times_has_none_in_the_distributions(meters: Meters, registry: CollectorRegistry) -> None:
    meters.turn_ended("ours", ended("interrupted"))
    assert registry.get_sample_value("baton_first_delta_seconds_count", {"tenant": "ours"}) is None
    assert registry.get_sample_value("baton_turn_seconds_count", {"tenant": "ours"}) is None
    assert registry.get_sample_value("baton_turn_faults_total", {"tenant": "ours", "code": "internal"}) is None


def test_gaps_are_between_the_deltas_of_one_answer(meters: Meters, registry: CollectorRegistry) -> None:
    one, other = meters.watch("ours"), meters.watch("ours")
    for watch, now_s in ((one, 1.0), (other, 1.25), (one, 1.5), (other, 2.25), (one, 1.5)):
        watch.delta(now_s)
    assert registry.get_sample_value("baton_delta_gap_seconds_count", {"tenant": "ours"}) == 3
    assert registry.get_sample_value("baton_delta_gap_seconds_sum", {"tenant": "ours"}) == 1.5


def test_a_single_delta_has_no_gap(meters: Meters, registry: CollectorRegistry) -> None:
    meters.watch("ours").delta(1.0)
    assert registry.get_sample_value("baton_delta_gap_seconds_count", {"tenant": "ours"}) == 0
