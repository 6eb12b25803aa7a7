"""Conversations as a chat template takes them."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from models.content import Call, CallResult, EvidencePart, Message, Said, TextPart, text_of
from models.errors import BadInput, Unsupported
from models.language.tool_format import CallFormat, format_of, offer_in_words, tools_for_template
from models.ports.generate import Constraint, ToolConstraint


class PromptWriter:
    """Writes prompts for one model.

    A word of the conversation that is spelled like one of the tokenizer's special tokens, such as `<|im_end|>`, is broken up
    by an invisible character: whatever was typed, retrieved or returned by a tool, it cannot end its message or begin one
    in another role.

    Args:
        tokenizer: of the model.
        template: what its chat template is told besides the conversation, such as `enable_thinking`.

    Attributes:
        tokenizer: the same.
        calls: how the model writes calls.

    Raises:
        BadInput: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: Mapping[str, Any] = MappingProxyType({})) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise BadInput("The model has no chat template, so it cannot hold a conversation. Choose one that has.")
        self.tokenizer = tokenizer
        self._template = template
        self.calls: CallFormat = format_of(tokenizer.chat_template)
        self._knows_calls = "tool_calls" in tokenizer.chat_template
        special = [re.escape(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._special = re.compile("|".join(sorted(special, key=len, reverse=True)) or r"(?!)")

    def tokens(
        self,
        items: tuple[Said, ...],
        constraint: Constraint | None = None,
        *,
        asks: bool = True,
        continues: bool = False,
    ) -> list[int]:
        """Return the prompt that asks for the answer to `items`, as token ids; it offers the functions of `constraint`.

        If it does not ask, it is the beginning of every prompt that goes on from `items`.

        Raises:
            Unsupported: there is something other than text in it.
            BadInput: it is empty, or the template refuses it, for instance because of the order of the roles.
        """
        if not items:
            raise BadInput("The conversation is empty. Say something first.", field="messages")
        entries = [self._entry(item) for item in items]
        told: dict[str, Any] = {}
        if isinstance(constraint, ToolConstraint) and (tools := tools_for_template(constraint)):
            tools = [self._plain_value(tool) for tool in tools]
            if self.calls.native:
                told["tools"] = tools
            else:
                _instruct(entries, offer_in_words(constraint, tools))
        if continues:
            self._check_continues(items[-1])
        try:
            text = self.tokenizer.apply_chat_template(
                entries,
                add_generation_prompt=asks and not continues,
                continue_final_message=continues,
                tokenize=False,
                **told,
                **self._template,
            )
        except (TemplateError, ValueError) as exc:
            raise BadInput(f"The model's chat template refuses this conversation: {exc}", field="messages") from exc
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def raw(self, items: tuple[Said, ...]) -> list[int]:
        """Return the words of the one item as they are, as token ids: no template, and special tokens where they are spelled.

        The tokenizer adds what it was made to add, such as a token that begins every text.

        Raises:
            Unsupported: there is something other than text in it.
            BadInput: it is empty.
        """
        (prompt,) = items
        if isinstance(prompt, Message):
            self._refuse_media(prompt)
        ids: list[int] = self.tokenizer(text_of(prompt))["input_ids"]
        if not ids:
            raise BadInput("The prompt is empty. This model needs something to go on with.", field="messages")
        return ids

    @staticmethod
    def _check_continues(last: Said) -> None:
        if not isinstance(last, Message) or last.role != "assistant" or not text_of(last).strip():
            raise BadInput(
                "Only words of the assistant can be gone on with: the last message is not the assistant's, or has none.",
                field="messages",
            )

    def words(self, text: str) -> list[int]:
        """Return words of an answer as token ids; what is spelled like a special token is words, too."""
        ids: list[int] = self.tokenizer(self._plain(text), add_special_tokens=False)["input_ids"]
        return ids

    def _entry(self, item: Said) -> dict[str, Any]:
        text = text_of(item)
        match item:
            case Message():
                self._refuse_media(item)
                return {"role": item.role, "content": self._plain(text)}
            case Call() if self._knows_calls:
                function = {"name": self._plain(item.name), "arguments": self._arguments(text)}
                call = {"id": self._plain(item.call_id), "type": "function", "function": function}
                return {"role": "assistant", "content": "", "tool_calls": [call]}
            case Call():
                return {"role": "assistant", "content": self.calls.write(self._plain(item.name), self._arguments(text))}
            case CallResult():
                self._refuse_media(item)
                return {"role": "tool", "content": self._plain(text), "tool_call_id": self._plain(item.call_id)}

    def _arguments(self, text: str) -> object:
        """Return the arguments of a call as templates want them; as they are, if the model wrote no JSON."""
        try:
            # Cleaned once it is parsed: JSON may spell a character so that it is seen only then.
            return self._plain_value(json.loads(text))
        except (ValueError, RecursionError):  # the latter if it is nested too deep to be followed
            return self._plain(text)

    def _plain_value(self, value: Any) -> Any:
        match value:
            case str():
                return self._plain(value)
            case list():
                return [self._plain_value(each) for each in value]
            case dict():
                return {self._plain(key): self._plain_value(each) for key, each in value.items()}
            case _:
                return value

    def _plain(self, text: str) -> str:
        return self._special.sub(lambda found: f"{found[0][0]}\u200b{found[0][1:]}", text)

    @staticmethod
    def _refuse_media(item: Message | CallResult) -> None:
        other = sorted({part.kind for part in item.parts if not isinstance(part, TextPart | EvidencePart)})
        if other:
            raise Unsupported(
                f"This model reads text only, and the conversation has {' and '.join(other)} content. Leave it out or "
                "choose another model.",
                field="messages",
            )


def _instruct(entries: list[dict[str, Any]], words: str) -> None:
    """Add `words` to the instructions of a conversation, which begin it if there are any."""
    if entries[0]["role"] == "system":
        words = f"{entries.pop(0)['content']}\n\n{words}"
    entries.insert(0, {"role": "system", "content": words})
