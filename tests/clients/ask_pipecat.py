"""Pipecat's service for OpenAI's Realtime API, in text, inside a pipeline."""

import asyncio
import sys

from loguru import logger
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import ErrorFrame, LLMFullResponseEndFrame, LLMRunFrame, LLMTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.events import SessionProperties
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from probe import KEY, RECORDED, SYSTEM, URL, check, check_kept, check_weather, feature, get_weather, heard, main

logger.remove()
logger.add(sys.stderr, level="ERROR")

TOOLS = ToolsSchema(
    standard_tools=[
        FunctionSchema(
            name="get_weather",
            description="Say what the weather is.",
            properties={"city": {"type": "string"}},
            required=["city"],
        )
    ]
)


class Ear(FrameProcessor):
    """Collects the text that passes, answer by answer."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.answers: asyncio.Queue[str | ErrorFrame] = asyncio.Queue()

    async def process_frame(self, frame, direction) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.text += frame.text
        elif isinstance(frame, LLMFullResponseEndFrame):
            if self.text:
                self.answers.put_nowait(self.text)
            self.text = ""
        await self.push_frame(frame, direction)


async def converse(messages: list[dict], *, instructions: str | None = None, tools=None) -> str:
    """Return the answer to a context."""
    properties = SessionProperties(output_modalities=["text"], instructions=instructions)
    llm = OpenAIRealtimeLLMService(
        api_key=KEY,
        base_url=f"{URL.replace('http', 'ws')}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model=RECORDED, session_properties=properties),
    )

    async def weather(params) -> None:
        await params.result_callback(get_weather(params.arguments["city"]))

    llm.register_function("get_weather", weather)
    context = LLMContext(messages, tools) if tools else LLMContext(messages)
    pair = LLMContextAggregatorPair(context)
    ear = Ear()
    task = PipelineTask(Pipeline([pair.user(), llm, ear, pair.assistant()]))

    @llm.event_handler("on_error")
    async def failed(_processor, frame: ErrorFrame) -> None:
        ear.answers.put_nowait(frame)

    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    try:
        await task.queue_frames([LLMRunFrame()])
        answer = await asyncio.wait_for(ear.answers.get(), 30)
    finally:
        await task.cancel()
        await asyncio.wait([running], timeout=10)
    check(isinstance(answer, str), answer)
    return answer


def user(text: str) -> dict:
    return {"role": "user", "content": text}


@feature("realtime: text")
async def _() -> None:
    text = await converse([user("count to 20")])
    check(text.split()[-1] == "20", text)


@feature("realtime: instructions")
async def _() -> None:
    check_kept(await converse([user("Hello.")], instructions=SYSTEM), "Hello.")


@feature("realtime: tools")
async def _() -> None:
    told = await converse([user("What is the weather in Bern?")], instructions=SYSTEM, tools=TOOLS)
    check_weather(told, "Bern")


@feature("realtime: history")
async def _() -> None:
    said = [user("First."), {"role": "assistant", "content": "Second."}, user("Third.")]
    told = str(heard(await converse(said)))
    check(all(words in told for words in ("First.", "Second.", "Third.")), told)


main()
