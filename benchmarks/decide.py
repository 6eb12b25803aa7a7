"""What does a decision cost, live and replayed, and what would LangGraph's checkpoint savers add to it?

`live` calls the steps; `replay` runs them as a LangGraph graph with checkpoints in memory. Beside them, in the same run:
that graph without checkpoints, and with LangGraph's own SQLite saver.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import typer
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from benchmarks.report import Json, Quick, Row, report, row
from models.catalog import Card, EngineSpec, Price
from models.content import Message, TextPart
from models.placement.fleet import FixedCardView
from orchestrator.decide.decider import Decider
from orchestrator.decide.decision import DecisionState
from orchestrator.decide.graph import DecisionGraph
from orchestrator.events import TurnInput

_CARD = Card(
    name="scripted",
    engine=EngineSpec(name="scripted"),
    reads=frozenset({"text"}),
    writes=frozenset({"text"}),
    calls_tools=True,
    context_tokens=32_768,
    price=Price.flat(0.0),
)
_INPUT = TurnInput(items=(Message(item_id="a", role="user", parts=(TextPart(text="Hello"),)),))


async def _measure(rounds: int) -> list[Row]:
    decider, graph = Decider(FixedCardView((_CARD,)), max_characters=1000), DecisionGraph()
    inputs: DecisionState = {"inputs": decider.inputs(_INPUT, ())}

    async def live(_: int) -> None:
        await decider.decide(_INPUT, ())

    async def replay(n: int) -> None:
        await graph.replay(("session", "turn", n), inputs["inputs"])
        await graph.forget(("session", "turn", n))

    with tempfile.TemporaryDirectory() as folder:
        async with AsyncSqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.sqlite3")) as saver:
            plain, sqlite = graph.builder.compile(), graph.builder.compile(checkpointer=saver)

            async def without(_: int) -> None:
                await plain.ainvoke(inputs)

            async def with_sqlite(n: int) -> None:
                config = RunnableConfig(configurable={"thread_id": str(n)})
                await sqlite.ainvoke(inputs, config, durability="exit")

            systems: dict[str, Callable[[int], Awaitable[None]]] = {
                "live": live,
                "replay": replay,
                "no_checkpoint": without,
                "langgraph_sqlite": with_sqlite,
            }
            times: dict[str, list[float]] = {system: [] for system in systems}
            for n in range(rounds):
                for system, decide in systems.items():
                    began_s = time.perf_counter()
                    await decide(n)
                    times[system].append((time.perf_counter() - began_s) * 1000)
    return [row("decision_ms", "ms", values[rounds // 10 :], system=system) for system, values in times.items()]


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure."""
    report(asyncio.run(_measure(200 if quick else 2000)), json)


if __name__ == "__main__":
    typer.run(main)
