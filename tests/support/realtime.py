"""The realtime protocol without a conductor, which would say what of an update can be."""

from dataclasses import replace

from orchestrator.events import SessionSettings
from streaming.realtime.protocol import RealtimeProtocol, Received
from streaming.realtime.updates import SetOptions


def confirmed(protocol: RealtimeProtocol, received: Received, settings: SessionSettings) -> Received:
    """Return what came of a message where everything that is set can be."""
    if not isinstance(received.command, SetOptions):
        return received
    return replace(received, command=None, replies=protocol.confirm(received.command, settings))
