"""`python -m mmedagent_graph.app`: the consulting room, by default with the embedded clinic."""

import argparse
import importlib
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from mmedagent_graph.context import Context
from mmedagent_graph.defaults import CLINIC, VARIABLES, default_graph
from mmedagent_graph.images import ImageStore


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the room; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if find_spec("gradio") is None:
            raise ValueError("the consulting room needs gradio; pip install 'mmedagent-graph[ui]'")
        specialists = given.specialists
        graph = default_graph(
            triage=given.triage,
            specialists=specialists[0] if specialists and len(specialists) == 1 else specialists,
            attending=given.attending,
            hospital=given.hospital,
            votes=given.votes,
            context_schema=Context,
            checkpointer=InMemorySaver(),
            images=ImageStore(paths=False),
        )
        from mmedagent_graph.app.room import build_app
        from mmedagent_graph.app.server import serve

        serve(build_app(graph, _example if find_spec("rl") else None), given.port)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mmedagent_graph.app", description=__doc__)
    parser.add_argument("--port", type=int, default=7860, help="on the loopback interface (7860)")
    models = parser.add_argument_group("models", "such as openai:gpt-4o or vllm:Qwen/Qwen2.5-VL-7B-Instruct")
    for name in CLINIC:
        several: dict[str, Any] = {"nargs": "+"} if name == "specialists" else {}
        fallback = "the clinic's doctors" if several else CLINIC[name]
        models.add_argument(f"--{name}", metavar="MODEL", help=f"default: ${VARIABLES[name]}, or {fallback}", **several)
    hospital = f"for whoever is not named: its folder or address; default: ${VARIABLES['hospital']}"
    models.add_argument("--hospital", metavar="PLACE", help=hospital)
    parser.add_argument(
        "--votes",
        type=_votes,
        metavar="N",
        help="how often the attending is asked, or adaptive (1); the page can change it",
    )
    return parser


def _votes(text: str) -> int | str:
    if text == "adaptive" or (text.isdecimal() and int(text)):
        return text if text == "adaptive" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more, or adaptive")


def _example(store: ImageStore) -> Mapping[str, Any]:
    """A case of the embedded clinic with options, another each time."""
    clinic = importlib.import_module("rl.clinic.cases")  # by name: this package works without `rl`
    cases = clinic.make_cases(100, seed=secrets.randbelow(2**31), store=store)
    case = next(case for case in cases if case.options)
    return {"question": case.question, "options": case.options, "images": case.images}


if __name__ == "__main__":
    sys.exit(main())
