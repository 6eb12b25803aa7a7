"""`/metrics`: Prometheus' text, holding the caller's tenant and the process, never another tenant."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import Metric

from streaming.edge.connections import Connections

UNKNOWN: Final = ""
"""The tenant of callers who were turned away before it was known who they are. Everybody sees what is counted there."""


class SurfaceMeters:
    """What the surfaces count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.errors = Counter(
            "baton_errors", "Errors that callers were given, by code.", ("tenant", "code"), registry=registry
        )
        self.sockets = Gauge("baton_websockets", "Websockets open now.", ("tenant",), registry=registry)


def count_connections(registry: CollectorRegistry, connections: Connections) -> None:
    """Show how many connections are open: on `waiting` ones no whole request has arrived, `answering` are the others."""
    gauge = Gauge("baton_connections", "Connections open now, by state.", ("state",), registry=registry)
    gauge.labels("waiting").set_function(lambda: connections.waiting)
    gauge.labels("answering").set_function(lambda: len(connections) - connections.waiting)


class _TenantView:
    """A registry as one tenant may see it."""

    def __init__(self, registry: CollectorRegistry, tenant: str) -> None:
        self._registry = registry
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample for sample in metric.samples if sample.labels.get("tenant", UNKNOWN) in {UNKNOWN, self._tenant}
            ]
            yield metric


def render(registry: CollectorRegistry, tenant: str) -> bytes:
    """Return the metrics that `tenant` may see, in Prometheus' text format."""
    return generate_latest(_TenantView(registry, tenant))
