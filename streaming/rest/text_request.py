"""What `POST /v1/completions` takes: OpenAI's older request, for a text that goes on.

Source: OpenAI's API reference, "Create completion". A field that would change the answer and cannot be honoured is refused
by name.
"""

from typing import Annotated

from pydantic import Field

from memory.keys import RequestDefaults
from models.content import Message, TextPart
from models.errors import BadInput, LimitExceeded, Unsupported
from orchestrator.events import TurnInput
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
from streaming.wire.shapes import Strict

MOST_ANSWERS = 64
"""Of one request: prompts times `n`. Each takes a place among the turns that run."""

_OUTPUT_TOKENS = 16
"""As the reference has it, where nothing else is asked for."""


class TextRequest(Strict):
    """The body."""

    prompt: str | Annotated[list[str | int | list[int]], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: AtLeastOne | None = None
    n: Copies | None = None
    best_of: AtLeastOne | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    temperature: Temperature | None = None
    top_p: Chance | None = None
    seed: Seed | None = None
    stop: StopStrings | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None

    # Not OpenAI's: as vLLM names them.
    top_k: TopK | None = None
    min_p: Chance | None = None
    repetition_penalty: RepetitionPenalty | None = None

    # For whom an application asks; see `streaming.subjects`.
    user: str | None = None

    @property
    def copies(self) -> int:
        """How many answers each prompt is to have."""
        return self.n or 1

    def prompts(self) -> list[str]:
        """Return the prompts.

        Raises:
            Unsupported: one is of token ids, or a field asks for what cannot be given.
            LimitExceeded: they ask for too many answers.
            BadInput: fields contradict each other.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        words = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(words) < len(prompts):
            at = next(at for at, prompt in enumerate(prompts) if not isinstance(prompt, str))
            raise Unsupported(
                "Prompts of token ids are not taken: their meaning depends on the model, which may be chosen here. "
                "Send text.",
                field=f"prompt[{at}]",
            )
        if self.suffix:
            raise Unsupported("Text is not filled in before a 'suffix' here. Leave it out.", field="suffix")
        if self.best_of is not None and self.best_of < self.copies:
            raise BadInput(f"'best_of' must not be less than 'n', which is {self.copies}.", field="best_of")
        if self.best_of is not None and self.best_of > self.copies:
            raise Unsupported(
                "All answers are given; none is written to be left out. Leave 'best_of' out, or make it 'n'.",
                field="best_of",
            )
        if self.echo and self.logprobs is not None:
            raise Unsupported(
                "Log-probabilities are of what is written, not of the prompt. Leave 'echo' or 'logprobs' out.",
                field="echo",
            )
        if (answers := len(words) * self.copies) > MOST_ANSWERS:
            raise LimitExceeded(
                f"{answers} answers are asked for: {len(words)} prompts, 'n' times each. The most of one request are "
                f"{MOST_ANSWERS}: send fewer prompts at a time.",
                field="prompt",
            )
        return words

    def turn(self, prompt: str, defaults: RequestDefaults) -> TurnInput:
        """Return what is asked of one prompt. It goes to the model as it is, so instructions have no place in it."""
        asked = defaults.max_output_tokens if self.max_tokens is None else self.max_tokens
        return TurnInput(
            items=(Message(item_id="item_0", role="user", parts=(TextPart(text=prompt),)),),
            model=self.model or defaults.model,
            max_output_tokens=_OUTPUT_TOKENS if asked is None else asked,
            sampling=overrides_of(self),
            logprobs=self.logprobs,
            raw=True,
        )
