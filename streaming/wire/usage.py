"""What an answer has used, in OpenAI's words."""

from typing import Any

from orchestrator.events import Usage


def completion_usage(usage: Usage) -> dict[str, Any]:
    """Return it in the words of chat and text completions, and in ours."""
    fields: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.drafts:
        fields["baton_drafts"] = {
            one.drafter: {"drafted_tokens": one.drafted, "accepted_tokens": one.accepted} for one in usage.drafts
        }
    return fields


def response_usage(usage: Usage) -> dict[str, Any]:
    """Return it in the words of responses."""
    return {
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {"cached_tokens": usage.cached_tokens},
    }
