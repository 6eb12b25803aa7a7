"""The tiny model as an engine: a loop without a thread, that steps while somebody reads."""

from collections.abc import AsyncGenerator

from models.content import Delta
from models.language.detokenize import Detokenizer
from models.language.tool_format import CallReader, offered
from models.ports.generate import GenerateRequest, ToolConstraint
from support.tiny_decoding import END, Ask, Tiny, Told


class BenchEngine:
    """Writes answers to a prompt of a few tokens, whatever is said; see `models.ports.generate.Engine`."""

    def __init__(self, tiny: Tiny) -> None:
        """Take the model."""
        self._tiny = tiny
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer once it is whole."""
        self.requests.append(request)
        sampling, tools = request.sampling, request.constraint
        ask = Ask(
            prompt=(5, 6, 7),
            limit=sampling.max_output_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed or 0,
            constraint=request.constraint,
            stop=sampling.stop,
            logit_bias=sampling.logit_bias,
        )
        bench, told = self._tiny.bench(blocks=256), Told()
        row = bench.row(ask, told)
        calls = isinstance(tools, ToolConstraint) and bool(offered(tools))
        row.writer = Detokenizer(
            self._tiny.tokenizer,
            sampling,
            ends=frozenset({END}),
            limit=ask.limit,
            calls=CallReader(either=isinstance(tools, ToolConstraint) and tools.form is not None) if calls else None,
        )
        bench.loop.submit(row)
        bench.finish()
        if told.error is not None:
            raise told.error
        for delta in told.deltas:
            yield delta

    async def aclose(self) -> None:
        """Do nothing."""
