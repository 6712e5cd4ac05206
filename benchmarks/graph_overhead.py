"""What the graph costs beside the shortest LangGraph graph of the same shape, in time per case and in throughput.

    python benchmarks/graph_overhead.py              # a table, in one or two minutes
    python benchmarks/graph_overhead.py --check      # the same, and fails where a target is missed

Time per case is the processor's, with models that answer at once, so that nothing waits and other work on the machine
is not counted; the two graphs take turns in one process, and the ratio is the median of the rounds'.

Throughput is with ChatOpenAI and a stub server, in a process of its own, that takes 200 ms a call; and, to tell the
graph's share from the client's, with models in the process that take as long. Its ideal is that nothing else takes
time: as many waves of 32 cases as there are, the last one not full, and three calls one after the other in each. It is
the best of its runs, for other work on the machine only makes it worse.
"""

import argparse
import asyncio
import math
import operator
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from mmedagent_graph import SPECIALTIES, build_graph

sys.path.append(str(Path(__file__).parents[1]))
from tests.stub_server import StubServer

OVERHEAD, THROUGHPUT = 1.25, 0.90
CASES, CONCURRENCY, LATENCY = 300, 32, 0.2
ROUNDS, RUNS = 80, 3
KINDS = ("ours", "shortest", "in process")
CASE = {"question": "Is the heart enlarged?", "options": ["yes", "no"]}
SAID = {
    "triage": "<think>An X-ray.</think><answer>Radiologist</answer>",
    "specialist": "<think>It is wide.</think><answer>yes</answer>",
    "attending": "<think>I see it, too.</think><answer>yes</answer>",
}


class Model(BaseChatModel):
    """Answers at once, or after so many seconds."""

    said: str
    latency: float = 0.0
    _llm_type = "stub"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.said))])

    async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(self.latency)
        return self._generate()


class State(TypedDict):
    question: str
    options: list[str]
    specialty: str
    opinions: Annotated[list[str], operator.add]
    answer: str


def shortest_graph(triage: Any, specialist: Any, attending: Any, sync: bool = False) -> Any:
    """What one would write who needs this graph once, for async or for sync callers."""

    def node(model: Any, prompt: Callable[[State], str], field: str) -> Callable[[State], Any]:
        def read(message: AIMessage) -> dict[str, Any]:
            answer = message.text.split("<answer>")[1].split("</answer>")[0]
            return {field: [answer] if field == "opinions" else answer}

        async def acall(state: State) -> dict[str, Any]:
            return read(await model.ainvoke(prompt(state)))

        return (lambda state: read(model.invoke(prompt(state)))) if sync else acall

    refer = node(triage, lambda s: f"Who shall answer: {', '.join(SPECIALTIES)}?\n{s['question']}", "specialty")
    ask = node(specialist, lambda s: f"You are a {s['specialty']}. {s['question']}\n{s['options']}", "opinions")
    decide = node(attending, lambda s: f"{s['question']}\n{s['options']}\nOpinions: {s['opinions']}", "answer")
    builder = StateGraph(State)
    builder.add_node("triage", refer).add_node("specialist", ask).add_node("attending", decide)
    builder.add_edge(START, "triage").add_edge("specialist", "attending")
    builder.add_conditional_edges("triage", lambda state: [Send("specialist", state)] * 3, ["specialist"])
    return builder.compile()


def seconds(graph: Any, sync: bool, cases: int = 8) -> float:
    """CPU seconds a case, one after the other."""

    async def run() -> None:
        for _ in range(cases):
            await graph.ainvoke(CASE)

    start = time.process_time()
    if sync:
        for _ in range(cases):
            graph.invoke(CASE)
    else:
        asyncio.run(run())
    return (time.process_time() - start) / cases


def overhead(sync: bool) -> tuple[float, float, float]:
    """CPU seconds a case of ours and of the shortest graph, and the ratio: each the median of the rounds."""
    models = {role: Model(said=said) for role, said in SAID.items()}
    graphs = graph_of(models), shortest_graph(**models, sync=sync)
    times = [[seconds(graph, sync) for graph in graphs] for _ in range(ROUNDS + 2)][2:]  # two warm up
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return medians[0], medians[1], statistics.median(a / b for a, b in times)


def graph_of(models: dict[str, Any]) -> Any:
    return build_graph(triage=models["triage"], specialists=models["specialist"], attending=models["attending"])


def throughput(kind: str) -> tuple[float, float]:
    """The share of the ideal, and the client's CPU seconds a case."""
    with StubServer(SAID, latency=LATENCY, process=True) as server:
        os.environ["VLLM_BASE_URL"] = server.url
        if kind == "ours":  # with the models as `load_model` makes them
            graph = graph_of({role: f"vllm:{role}" for role in SAID})
        elif kind == "shortest":
            graph = shortest_graph(*(ChatOpenAI(model=role, base_url=server.url, api_key="x") for role in SAID))
        else:
            graph = graph_of({role: Model(said=said, latency=LATENCY) for role, said in SAID.items()})

        async def run() -> tuple[float, float]:
            await graph.ainvoke(CASE)  # warms up
            start, busy = time.perf_counter(), time.process_time()
            await graph.abatch([CASE] * CASES, config={"max_concurrency": CONCURRENCY})
            return time.perf_counter() - start, time.process_time() - busy

        took, busy = asyncio.run(run())
    if sum(server.calls.values()) != (5 * (CASES + 1) if kind != "in process" else 0):
        raise SystemExit(f"the models were called {dict(server.calls)} times for {CASES + 1} cases")
    return math.ceil(CASES / CONCURRENCY) * 3 * LATENCY / took, busy / CASES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    check = parser.parse_args().check

    print(f"time per case       ours     shortest   ratio (target: {OVERHEAD} or less)")
    ratios = []
    for name, sync in (("ainvoke", False), ("invoke", True)):
        ours, shortest, ratio = overhead(sync)
        print(f"{name:15} {1000 * ours:5.2f} ms     {1000 * shortest:5.2f} ms   {ratio:.2f}", flush=True)
        ratios.append(ratio)

    print(f"\nthroughput      of the ideal   client's CPU a case (target: {THROUGHPUT:.0%} or more)")
    runs = [[throughput(kind) for kind in KINDS] for _ in range(RUNS)]
    for name, tries in zip(KINDS, zip(*runs, strict=True), strict=True):
        shares, busy = zip(*tries, strict=True)
        print(f"{name:15} {max(shares):12.0%}   {1000 * min(busy):.1f} ms")
    if check and (max(ratios) > OVERHEAD or max(ours[0] for ours, *_ in runs) < THROUGHPUT):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
