"""What a caller is told of an address that is not there: what to ask instead, or that it is not offered yet."""

_CHAT = "Ask POST /v1/chat/completions."

_NOT_OFFERED = (
    ("/v1/responses", f"The Responses API is not offered yet. {_CHAT}"),
    ("/v1/audio", "Audio is not offered yet."),
    ("/v1/images", "Images are not offered yet."),
    ("/v1/videos", "Videos are not offered yet."),
    ("/v1/moderations", "Moderations are not offered."),
    ("/v1/files", "Files are not offered."),
    ("/v1/uploads", "Uploads are not offered."),
    ("/v1/batches", "Batches are not offered."),
    ("/v1/fine_tuning", "Fine-tuning is not offered."),
    ("/v1/vector_stores", "Vector stores are not offered."),
    ("/v1/assistants", f"The Assistants API is not offered. {_CHAT}"),
    ("/v1/threads", f"The Assistants API is not offered. {_CHAT}"),
    (
        "/v1/conversations",
        "The Conversations API is not offered yet. A conversation that is kept is a session: /v1/sessions.",
    ),
    ("/v1/messages", f"This is OpenAI's API, and not Anthropic's. {_CHAT}"),
    ("/api", f"This is OpenAI's API, and not Ollama's. {_CHAT}"),
)


_ROOTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/sessions", "/v1/realtime")


def hint(path: str) -> str:
    """Return what to say of `path`, where there is nothing."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    for start, said in _NOT_OFFERED:
        # By itself, behind something, or without its version.
        if f"{start}/" in f"{plain}/" or f"{plain}/".startswith(f"{start.removeprefix('/v1')}/"):
            return said
    if plain == "/v1/realtime":
        return "/v1/realtime is a websocket: open it by ws: or wss:."
    # The base address without its version, with it twice, or with something before it.
    for root in _ROOTS:
        _before, found, after = plain.rpartition(root.removeprefix("/v1"))
        if plain == f"{root}{after}" and found:
            break
        if found and (not after or after.startswith("/")):
            return f"Not found. Did you mean {root}{after}? A client's base address ends with /v1."
    return "Not found. There are, among others, /v1/chat/completions, /v1/models, /v1/sessions and /readyz."
