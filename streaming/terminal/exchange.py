"""One question and its answer, as a pure machine: what to send next, whatever the connection does meanwhile.

A question is sent in two steps. It is added to the conversation, under an id of ours; once the server has it in its log,
an answer is asked for. A connection lost at any moment so leaves no doubt about what has arrived: when the log has been
told again up to its end, what is not in it has not arrived, and is sent again.

```
sending → asking → answering → done
            any of them → failed
```
"""

from typing import Literal

from models.ids import new_id
from streaming.terminal.api import Json

ExchangeStage = Literal["sending", "asking", "answering", "done", "failed"]


class Exchange:
    """One question under way.

    Attributes:
        item_id: the question's item.
        stage: how far it is.
        response_id: the answer, once it has begun.
        failure: why it failed, if it did.
        stopping: whether the user has asked to stop it.
    """

    def __init__(self, text: str) -> None:
        self.item_id = new_id("item")
        self.stage: ExchangeStage = "sending"
        self.response_id: str | None = None
        self.failure: str | None = None
        self.stopping = False
        self._text = text
        self._asked = new_id("ask")

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.stage in {"done", "failed"}

    def pending(self) -> tuple[Json, ...]:
        """Return what has to be sent, given that all the server's log is known: at the start, and after a loss."""
        match self.stage:
            case "sending":
                content = [{"type": "input_text", "text": self._text}]
                item = {"id": self.item_id, "type": "message", "role": "user", "content": content}
                return ({"type": "conversation.item.create", "event_id": self.item_id, "item": item},)
            case "asking":
                return ({"type": "response.create", "event_id": self._asked},)
            case "answering" if self.stopping:
                return ({"type": "response.cancel", "response_id": self.response_id},)
            case _:
                return ()

    def stop(self) -> tuple[Json, ...]:
        """Note that the answer is not wanted any more; return what has to be sent."""
        self.stopping = True
        return self.pending() if self.stage == "answering" else ()

    def take(self, event: Json) -> tuple[Json, ...]:
        """Take an event of the server into account; return what has to be sent."""
        match event["type"], self.stage:
            case "conversation.item.done", "sending" if event["item"]["id"] == self.item_id:
                return self._reach("asking")
            case "response.created", "asking":
                self.response_id = event["response"]["id"]
                return self._reach("answering")
            case "response.done", "answering" if event["response"]["id"] == self.response_id:
                return self._reach("done")
            case "error", _:
                return self._fault(event["error"])
            case _:
                return ()

    def _fault(self, error: Json) -> tuple[Json, ...]:
        about = error["event_id"]
        if self.stage == "sending" and about == self.item_id:
            if error["code"] == "item_exists":
                return self._reach("asking")
        elif self.stage != "asking" or about != self._asked:
            return ()
        self.failure = error["message"]
        return self._reach("failed")

    def _reach(self, stage: ExchangeStage) -> tuple[Json, ...]:
        if self.stopping and stage == "asking":
            # Nothing to stop: an answer was never asked for.
            stage = "done"
        self.stage = stage
        return self.pending()
