"""What `POST /v1/chat/completions` takes: OpenAI's request, and what it means here.

Source: OpenAI's API reference, "Create chat completion". A field that would change the answer and cannot be honoured
is refused by name; one that changes nothing here (`user`, `service_tier`, …) is taken.
"""

from typing import Annotated, Any

from pydantic import Field, JsonValue

from memory.keys import RequestDefaults
from models.content import Item
from models.errors import BadInput, Unsupported
from orchestrator.events import SamplingOverrides, TurnInput
from streaming.realtime.events import Metadata
from streaming.rest.chat_forms import ResponseFormat, Tool, ToolChoice, tools_of
from streaming.rest.chat_messages import AssistantMessage, ChatMessage, conversation_of
from streaming.rest.typed import Strict


class StreamOptions(Strict):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


_SMALLEST_TOP_P = 1e-9  # 0 is the likeliest token alone, and not every model takes it

Penalty = Annotated[float, Field(ge=-2, le=2)]

TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
LogitBias = Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)]


MOST_CHOICES = 16
"""As many as a local model writes at a time by default."""


class ChatRequest(Strict):
    """The body."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    n: Annotated[int | None, Field(ge=1, le=MOST_CHOICES)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[Tool] | None, Field(max_length=128)] = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    # Not OpenAI's: as vLLM names them.
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=2)] = None

    # Honoured only at the value that changes nothing; see `_refuse`.
    modalities: list[str] | None = None
    audio: JsonValue = None
    reasoning_effort: str | None = None

    # These change nothing here.
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
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
            sampling=SamplingOverrides(
                temperature=self.temperature,
                top_p=None if self.top_p is None else max(self.top_p, _SMALLEST_TOP_P),
                seed=self.seed,
                stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
                logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
                repetition_penalty=self.repetition_penalty or 1.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
                top_k=max(self.top_k or 0, 0),
                min_p=self.min_p or 0.0,
            ),
            logprobs=self._logprobs(),
            continues=self._continues(),
            metadata=self.metadata,
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
