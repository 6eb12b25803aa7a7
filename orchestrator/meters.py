"""What the conductor counts, in Prometheus' terms; the registry is the application's, never the global one."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from models.content import UsageDelta
from orchestrator.events import TurnEnded

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class TurnWatch:
    """Times the deltas of one answer."""

    def __init__(self, gap: Histogram) -> None:
        self._gap = gap
        self._last_s: float | None = None

    def delta(self, now_s: float) -> None:
        """Count a delta that has just come."""
        if self._last_s is not None:
            self._gap.observe(now_s - self._last_s)
        self._last_s = now_s


class Meters:
    """Counters of turns, labelled with the tenant who alone is shown them, and gauges of the whole process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._turns = Counter("baton_turns", "Turns that ended, by how.", ("tenant", "state"), registry=registry)
        self._tokens = Counter(
            "baton_tokens", "Tokens that turns have used.", ("tenant", "direction"), registry=registry
        )
        self._cached = Counter(
            "baton_cached_tokens", "Tokens of prompts that were found in a cache.", ("tenant",), registry=registry
        )
        self._ahead = Counter(
            "baton_read_ahead_tokens",
            "Tokens of prompts that were read before they were asked for.",
            ("tenant",),
            registry=registry,
        )
        self._drafted = Counter(
            "baton_draft_tokens",
            "Tokens that were drafted, by drafter and whether they were right.",
            ("tenant", "drafter", "outcome"),
            registry=registry,
        )
        self._first_delta = Histogram(
            "baton_first_delta_seconds",
            "From when a turn was asked for to its first delta.",
            ("tenant",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "baton_turn_seconds",
            "From when a turn was asked for to its end.",
            ("tenant",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._gap = Histogram(
            "baton_delta_gap_seconds",
            "Between two deltas of an answer.",
            ("tenant",),
            buckets=_GAP_SECONDS,
            registry=registry,
        )
        self._faults = Counter(
            "baton_turn_faults", "Turns that failed, by the error's code.", ("tenant", "code"), registry=registry
        )
        self.turns = Gauge("baton_turns_running", "Turns that run now.", registry=registry)
        self.sessions = Gauge("baton_sessions_in_memory", "Sessions in memory now.", registry=registry)
        self.worker_restarts = Gauge("baton_worker_restarts", "How often the worker was restarted.", registry=registry)
        self.worker_requests = Gauge("baton_worker_requests", "Requests that run in the worker.", registry=registry)
        self.writes_waiting = Gauge(
            "baton_database_writes_waiting", "Units that wait to be written.", registry=registry
        )

    def watch(self, tenant: str) -> TurnWatch:
        """Return what times the deltas of one answer."""
        return TurnWatch(self._gap.labels(tenant))

    def read_ahead(self, tenant: str, used: UsageDelta) -> None:
        """Count what was read ahead; it is in no turn's usage."""
        self._ahead.labels(tenant).inc(used.input_tokens)

    def turn_ended(self, tenant: str, ended: TurnEnded) -> None:
        """Count a turn that has ended."""
        self._turns.labels(tenant, ended.state).inc()
        self._tokens.labels(tenant, "in").inc(ended.usage.input_tokens)
        self._tokens.labels(tenant, "out").inc(ended.usage.output_tokens)
        self._cached.labels(tenant).inc(ended.usage.cached_tokens)
        for draft in ended.usage.drafts:
            self._drafted.labels(tenant, draft.drafter, "accepted").inc(draft.accepted)
            self._drafted.labels(tenant, draft.drafter, "refused").inc(draft.drafted - draft.accepted)
        if ended.fault is not None:
            self._faults.labels(tenant, ended.fault.code).inc()
        if ended.first_delta_ms is not None:
            self._first_delta.labels(tenant).observe(ended.first_delta_ms / 1000)
        if ended.duration_ms is not None:
            self._duration.labels(tenant).observe(ended.duration_ms / 1000)
