"""What `POST /v1/chat/completions` takes: OpenAI's request, and what it means here.

Source: OpenAI's API reference, "Create chat completion". A field that would change the answer and cannot be honoured
is refused by name; one that changes nothing here (`user`, `service_tier`, …) is taken.
"""

from typing import Annotated, Any

from pydantic import Field, JsonValue

from memory.keys import RequestDefaults
from models.content import Item
from models.errors import BadInput, Unsupported
from orchestrator.events import OnLeave, TurnInput
from streaming.rest.chat_forms import ChatTool, ChatToolChoice, ResponseFormat, tools_of
from streaming.rest.chat_messages import AssistantMessage, ChatMessage, conversation_of
from streaming.rest.sampling import (
    AtLeastOne,
    Chance,
    Copies,
    LogitBias,
    Penalty,
    RepetitionPenalty,
    Seed,
    StopStrings,
    StreamOptions,
    Temperature,
    TopK,
    overrides_of,
)
from streaming.wire.shapes import BatonTurn, Metadata, Strict


class ChatRequest(Strict):
    """The body."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_tokens: AtLeastOne | None = None
    max_completion_tokens: AtLeastOne | None = None
    temperature: Temperature | None = None
    top_p: Chance | None = None
    seed: Seed | None = None
    stop: StopStrings | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    n: Copies | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[ChatTool] | None, Field(max_length=128)] = None
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    # Not OpenAI's: as vLLM names them.
    top_k: TopK | None = None
    min_p: Chance | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    repetition_penalty: RepetitionPenalty | None = None

    # Baton's own.
    baton: BatonTurn | None = None

    # Honoured only at the value that changes nothing; see `_refuse`.
    modalities: list[str] | None = None
    audio: JsonValue = None
    reasoning_effort: str | None = None

    # For whom an application asks; see `streaming.subjects`.
    safety_identifier: str | None = None
    user: str | None = None

    # These change nothing here.
    service_tier: str | None = None
    prediction: JsonValue = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonValue = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    def turn(self, defaults: RequestDefaults) -> tuple[tuple[Item, ...], TurnInput]:
        """Return the conversation so far, and what is asked now.

        Raises:
            BadInput: a result answers no call, the function that has to be called is not on offer, or fields contradict
                each other.
            Unsupported: a field asks for what cannot be given.
        """
        self._refuse()
        instructions, items = conversation_of(self.messages, kept=self.store or False)
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        turn_input = TurnInput(
            items=tuple(items[-1:]),
            instructions=instructions or defaults.instructions,
            model=self.model or defaults.model,
            tools=tools_of(self.tools, self.tool_choice, parallel=self.parallel_tool_calls),
            form=None if self.response_format is None else self.response_format.form(),
            max_output_tokens=defaults.max_output_tokens if asked is None else asked,
            sampling=overrides_of(self),
            logprobs=self._logprobs(),
            continues=self._continues(),
            metadata=self.metadata,
            on_leave=self._on_leave(),
        )
        return tuple(items[:-1]), turn_input

    def _refuse(self) -> None:
        wanted: dict[str, Any] = {
            "modalities": self.modalities not in (None, ["text"]),
            "audio": self.audio,
            "reasoning_effort": self.reasoning_effort not in {None, "none", "minimal"},
        }
        if self.store and self.choices > 1:
            raise Unsupported("A conversation that is kept has one answer. Leave 'store' or 'n' out.", field="n")
        for field, is_wanted in wanted.items():
            if is_wanted:
                raise Unsupported(f"'{field}' cannot be honoured here yet. Leave it out.", field=field)

    def _on_leave(self) -> OnLeave:
        asked = None if self.baton is None else self.baton.on_leave
        if not self.store and asked not in {None, "cancel"}:
            raise Unsupported(
                "An answer that is not kept ends when its client leaves. Set 'store', or leave 'on_leave' out.",
                field="baton.on_leave",
            )
        return asked or "grace"

    def _continues(self) -> bool:
        if not self.continue_final_message:
            if self.add_generation_prompt is False:
                raise Unsupported(
                    "Without a prompt for an answer there has to be one to go on with: set 'continue_final_message'.",
                    field="add_generation_prompt",
                )
            return False
        if self.add_generation_prompt:
            raise BadInput("It contradicts 'continue_final_message'. Set it to false.", field="add_generation_prompt")
        last = self.messages[-1]
        if not isinstance(last, AssistantMessage) or not last.content or last.tool_calls:
            raise BadInput("The last message has to be words of the assistant's.", field="continue_final_message")
        if self.store:
            raise Unsupported("A conversation that is kept is not gone on with.", field="continue_final_message")
        return True

    def _logprobs(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise BadInput("'top_logprobs' needs 'logprobs' to be true.", field="top_logprobs")
            return None
        if self.store:
            raise Unsupported(
                "A conversation that is kept has words alone, not their log-probabilities. Leave 'store' or 'logprobs' out.",
                field="logprobs",
            )
        return self.top_logprobs or 0
