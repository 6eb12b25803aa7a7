"""LiveKit's agents with the plugin for OpenAI's Realtime API, in text."""

import logging

from livekit.agents import Agent, AgentSession, function_tool
from livekit.plugins.openai import realtime
from probe import KEY, RECORDED, SYSTEM, URL, check, check_kept, check_weather, feature, get_weather, heard, main

logging.disable(logging.ERROR)


class Quill(Agent):
    def __init__(self, **options) -> None:
        super().__init__(instructions=SYSTEM, **options)

    @function_tool
    async def get_weather(self, city: str) -> str:
        """Say what the weather is."""
        return get_weather(city)


async def converse(agent: Agent, *said: str) -> str:
    """Say each, and return the last answer's text."""
    text = ""
    errors = []
    model = realtime.RealtimeModel(
        model=RECORDED,
        base_url=URL,
        api_key=KEY,
        modalities=["text"],
        turn_detection=None,
        input_audio_transcription=None,
    )
    async with model, AgentSession(llm=model) as session:
        session.on("error", lambda event: errors.append(event.error))
        await session.start(agent)
        for words in said:
            told = await session.run(user_input=words)
            text = next(event.item.text_content for event in reversed(told.events) if event.type == "message")
    check(not errors, errors)
    return text or ""


@feature("realtime: text")
async def _() -> None:
    text = await converse(Agent(instructions=""), "count to 20")
    check(text.split()[-1] == "20", text)


@feature("realtime: instructions")
async def _() -> None:
    check_kept(await converse(Agent(instructions=SYSTEM), "Hello."), "Hello.")


@feature("realtime: tools")
async def _() -> None:
    check_weather(await converse(Quill(), "What is the weather in Bern?"), "Bern")


@feature("realtime: history")
async def _() -> None:
    told = heard(await converse(Agent(instructions=SYSTEM), "First.", "Second."))
    check(told["heard"] == ["First.", "Second."] and len(told["answers"]) == 1, told)


main()
