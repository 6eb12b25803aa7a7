"""Constrained decoding: which tokens may come next, by JSON schema, regular expression, grammar, or functions on offer.

llguidance knows the grammar and the vocabulary, and says it as bit masks. A `Guide` follows one answer: before a step it
gives the masks of the positions that are verified, after it it is told what was written. Choosing under the mask is all
there is to it, so speculation changes nothing: a draft token that the mask refuses is simply never chosen.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, assert_never

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from models.errors import BadInput, BatonError, Internal, LimitExceeded
from models.language.decoding.form_limits import LIMITS
from models.language.tool_format import (
    JSON_STYLE,
    WORDS_ONLY,
    CallFormat,
    arguments_schema,
    begins_call,
    form_schema,
    grammar,
    offered,
)
from models.ports.generate import Constraint, GrammarConstraint, JsonSchemaConstraint, RegexConstraint, ToolConstraint

_MESSAGE_CHARACTERS = 400

_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar", "tools": "tools"}


class Constrainer:
    """Starts guides for the answers of one model. May be used by several threads.

    Built once: it takes a second for a vocabulary of 49,152. `start` takes 2 to 20 ms, 0.2 s for a schema of 150
    properties, so it belongs into another thread than the device's.

    What it is given was tried out before (`models.language.decoding.form_trial`): native code dies of what goes too deep.

    Args:
        tokenizer: of the model.
        vocabulary: the width of the model's logits; what is beyond the tokenizer's tokens is never chosen.
        ends: tokens that end an answer.
        calls: how the model writes calls.

    Raises:
        BadInput: the tokenizer has tokens that the model has not.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, vocabulary: int, ends: Collection[int], calls: CallFormat
    ) -> None:
        if len(tokenizer) > vocabulary:
            raise BadInput(
                f"The tokenizer has {len(tokenizer)} tokens, and the model only {vocabulary}. They do not fit."
            )
        self.vocabulary = vocabulary
        self._calls = calls
        self._ends = frozenset(ends or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]))
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(self._ends) or None)
        # A grammar may name special tokens, such as one that begins a message in another role. None is ever written. What
        # is special the tokenizer says: llguidance takes the marks of calls for it, too, where they are tokens.
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        writable = self._ends | (frozenset(tokenizer.get_vocab().values()) - special)
        self._unwritable = frozenset(range(vocabulary)) - writable
        self._added = {text: token for text, token in tokenizer.get_added_vocab().items() if token in writable}
        bits = np.zeros(-(-vocabulary // 32) * 32, np.bool_)
        bits[list(writable)] = True
        self._writable = np.packbits(bits, bitorder="little").view(np.int32)

    def start(self, constraint: Constraint, begun: str = "") -> "Guide | None":
        """Return a guide for an answer; None if `constraint` leaves all answers free.

        Args:
            constraint: what the whole answer keeps to.
            begun: its words up to here, if it is gone on with.

        Raises:
            BadInput: the schema, the expression or the grammar is none, says what cannot be enforced, or admits no answer, or
                none that begins so.
            LimitExceeded: following it would take too long.
        """
        if isinstance(constraint, ToolConstraint) and not offered(constraint):
            return None if constraint.form is None else self.start(constraint.form, begun)
        what, field = _NAMES[constraint.kind], _field(constraint)
        with _translated(what, field):
            matcher = self._matcher(self._source(constraint))
        if matcher.is_error():
            if isinstance(constraint, ToolConstraint):
                self._refuse_part(constraint)
            raise _refusal(what, field, matcher.get_error())
        if begun:
            self._go_on(matcher, begun, constraint)
        guide = Guide(matcher, self._writable, self._ends, self._unwritable, field=field)
        guide.masks()  # the dearest, and here it holds nobody up; and it knows whether there is any answer at all
        return guide

    def start_words(self) -> "Guide":
        """Return a guide for an answer in words in which no call is written: where none can be made, none is to be seen."""
        matcher = self._matcher(LLMatcher.grammar_from_lark(WORDS_ONLY))
        return Guide(matcher, self._writable, self._ends, self._unwritable, field="tools")

    def sources(self, constraint: Constraint) -> Iterator[tuple[str, str]]:
        """Yield what `start` compiles, with the field it comes from: the whole, and its parts where the whole is at fault.

        Raises:
            BadInput: it is none.
        """
        if isinstance(constraint, ToolConstraint) and not offered(constraint):
            if constraint.form is not None:
                yield from self.sources(constraint.form)
            return
        field = _field(constraint)
        with _translated(_NAMES[constraint.kind], field):
            whole = self._source(constraint)
        yield whole, field
        if isinstance(constraint, ToolConstraint):
            for tool in offered(constraint):
                place = constraint.place_of(tool.name)
                yield _grammar_of(arguments_schema(tool, place)), place
            if constraint.form is not None:
                yield from self.sources(constraint.form)

    def _source(self, constraint: Constraint) -> str:
        match constraint:
            case JsonSchemaConstraint(schema=text):
                return _grammar_of(form_schema(text))
            case RegexConstraint(pattern=pattern):
                return LLMatcher.grammar_from_regex(pattern)
            case GrammarConstraint(grammar=text):
                return LLMatcher.grammar_from_lark(text)
            case ToolConstraint():
                return LLMatcher.grammar_from_lark(grammar(constraint, self._calls, self._added) or "")
            case _:
                assert_never(constraint)

    def _matcher(self, source: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)

    def _go_on(self, matcher: LLMatcher, begun: str, constraint: Constraint) -> None:
        """Follow words that were written before.

        Raises:
            BadInput: `form_unsatisfiable`: no answer of this form begins so, or they have begun a call.
            LimitExceeded: it would take too long to follow them.
        """
        what, field = _NAMES[constraint.kind], _field(constraint)
        # What the tokens are is no matter, only what they spell: a prompt's may begin in the middle of a word of these.
        tokens = self._tokenizer.greedy_tokenize(begun)
        fitting = matcher.try_consume_tokens(tokens)
        if fitting < len(tokens) and (error := matcher.get_error()) and "satisfy the grammar" not in error:
            raise _too_much(field)
        # What is called is told call by call; half of one cannot be.
        calls = isinstance(constraint, ToolConstraint) and begins_call(begun)
        if fitting == len(tokens) and not calls:
            return
        place = len(self._tokenizer.decode_bytes(tokens[:fitting]).decode(errors="ignore"))
        why = "they begin a call" if calls else f"they part from it after {place} characters"
        raise BadInput(
            f"The answer cannot go on from the assistant's words and keep to its {what}: {why}. The form holds for the whole, "
            "these words included, and JSON is written as Python's json.dumps does, on one line. Correct the words, or leave "
            "the form or 'continue_final_message' out.",
            code="form_unsatisfiable",
            field=field,
        )

    def _refuse_part(self, constraint: ToolConstraint) -> None:
        """Raise an error that names the first function whose parameters cannot be enforced, or the form beside them."""
        for tool in offered(constraint):
            what = f"JSON schema of the function {tool.name!r}"
            field = constraint.place_of(tool.name)
            with _translated(what, field):
                error = self._matcher(_grammar_of(arguments_schema(tool, field))).get_error()
            if error:
                raise _refusal(what, field, error)
        if constraint.form is not None:
            self.start(constraint.form)


def _field(constraint: Constraint) -> str:
    return "tools" if constraint.kind == "tools" else f"constraint.{constraint.kind}"


class Guide:
    """Follows one answer along its grammar. Used by one thread at a time.

    Masks are bits, 32 tokens an int32, the lowest first: shape (positions, ceil(vocabulary / 32)). With SmolLM2's 49,152
    tokens one takes 10 to 25 µs in the median, 0.1 ms in the mean, and a few milliseconds where the lexer is in a state for
    the first time; following a token takes 5 to 10 µs (two cores of a Sapphire Rapids server, JSON and free text alike).
    """

    def __init__(
        self,
        matcher: LLMatcher,
        writable: NDArray[np.int32],
        ends: frozenset[int],
        unwritable: frozenset[int],
        *,
        field: str,
    ) -> None:
        """Take what `Constrainer.start` has made."""
        self._matcher = matcher
        self._writable = writable
        self._ends = ends
        self._refused = ends | unwritable
        self._field = field
        self._ended = False

    @property
    def stopped(self) -> bool:
        """Whether the answer is whole, and nothing may follow but its end."""
        return self._ended or self._matcher.is_stopped()

    def masks(self, drafts: Sequence[int] = ()) -> NDArray[np.int32]:
        """Return the mask of the next position, and of the one after each draft token.

        The drafts are cut at the first that the grammar refuses, and at the first that ends the answer: of `1 + n` masks,
        the first `n` drafts are worth verifying. Nothing is accepted yet.

        Raises:
            BadInput: the grammar goes on in no way from here, which happens only if it is at fault.
            LimitExceeded: it would take too long to find out how it goes on.
        """
        matcher = self._matcher
        cut = next((at for at, token in enumerate(drafts) if token in self._refused), len(drafts))
        admissible = list(drafts[: matcher.validate_tokens(list(drafts[:cut]))]) if cut else []
        masks = np.empty((1 + len(admissible), len(self._writable)), np.int32)
        for at, row in enumerate(masks):
            matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            if at < len(admissible):
                matcher.consume_token(admissible[at])
        if admissible:
            matcher.rollback(len(admissible))
        error = matcher.get_error()
        if error and not error.startswith("NoExtension"):
            raise _too_much(self._field)
        masks &= self._writable
        if error or not masks.any(axis=1).all():
            raise BadInput("The grammar comes to a point from which it does not go on. Correct it.", field=self._field)
        return masks

    def accept(self, tokens: Sequence[int]) -> None:
        """Go on by tokens that were written, each chosen under its mask; one that ends the answer may be the last.

        Raises:
            Internal: one was not admissible.
            LimitExceeded: it would take too long to find out what may follow.
        """
        for token in tokens:
            if token in self._ends:
                self._ended = True
            elif self._ended or not self._matcher.consume_token(token):
                error = self._matcher.get_error()
                if error and "satisfy the grammar" not in error:
                    raise _too_much(self._field)
                raise Internal(f"A token was written that the grammar refuses. {error}")

    def forced(self) -> list[int]:
        """Return the tokens that the grammar leaves no choice but to write next, as the tokenizer would write them.

        They are a draft, and not certain: the same text may be written in other tokens.
        """
        tokens = self._matcher.compute_ff_tokens()
        return tokens[: next((at for at, token in enumerate(tokens) if token in self._refused), len(tokens))]


def masked(logits: torch.Tensor, masks: NDArray[np.int32]) -> torch.Tensor:
    """Return logits of which those that the masks exclude are minus infinity; the argument stays as it is.

    Args:
        logits: shape (positions, vocabulary), on any device.
        masks: one for each position.
    """
    vocabulary = logits.shape[-1]
    if logits.device.type == "cpu":
        bits = np.unpackbits(masks.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
        excluded = torch.from_numpy(bits.view(np.bool_)).logical_not_()
    else:
        # Unpacked there: as bits they are a thirty-second of the logits, and as booleans a quarter.
        packed = torch.from_numpy(masks).to(logits.device)
        places = torch.arange(32, dtype=torch.int32, device=logits.device)
        excluded = ((packed[:, :, None] >> places) & 1).view(len(masks), -1)[:, :vocabulary] == 0
    return logits.masked_fill(excluded, -torch.inf)


def _grammar_of(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema({**schema, "x-guidance": JSON_STYLE})


@contextmanager
def _translated(what: str, field: str) -> Iterator[None]:
    """Have whatever the library raises within be a refusal of what was asked: a caller wrote it."""
    try:
        yield
    except BatonError:
        raise
    except BaseException as exc:
        # A panic of native code is no `Exception`, and has no name that could be imported.
        if isinstance(exc, Exception) or type(exc).__name__ == "PanicException":
            raise _refusal(what, field, str(exc)) from exc
        raise


def _refusal(what: str, field: str, error: str) -> BadInput:
    if "too many" in error or "too large" in error or "fuel" in error:
        return _too_much(field)
    said = " ".join(error.replace("<non-verbose/>", "").split())[:_MESSAGE_CHARACTERS]
    return BadInput(
        f"The {what} cannot be enforced: {said}. Leave that out, or write it otherwise.",
        code="form_unsatisfiable" if said.startswith("Unsatisfiable") else None,
        field=field,
    )


def _too_much(field: str) -> LimitExceeded:
    return LimitExceeded(
        "Keeping the answer to this form would take too long: it is too large, or repeats too much within repetitions. "
        "Make it simpler.",
        field=field,
    )
