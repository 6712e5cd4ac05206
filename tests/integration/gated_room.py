"""A consulting room whose doctors say what a test tells them, when it tells them: `python -m ... PORT FOLDER`.

Each waits for a file of its name (`triage`, `doctor-1`, `attending-1` for its first vote, ...) in the subfolder that
the case's question names, and answers what the file says, as JSON; after a `!`, it fails with it.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from mmedagent_graph import Context, ImageStore, build_graph
from mmedagent_graph.app.room import build_app
from mmedagent_graph.app.server import serve


def main(port: int, folder: Path) -> None:
    async def told(case: Any, who: str) -> Any:
        file = folder / case["question"] / who
        while not file.exists():
            await asyncio.sleep(0.01)
        if (said := file.read_text()).startswith("!"):
            raise RuntimeError(said[1:])
        return json.loads(said)

    async def triage(case: Any) -> Any:
        return await told(case, "triage")

    async def doctor(case: Any) -> Any:
        return await told(case, f"doctor-{case['doctor']}")

    async def attending(case: Any) -> Any:
        return await told(case, f"attending-{case['vote']}")

    graph = build_graph(
        triage=triage,
        specialists=doctor,
        attending=attending,
        context_schema=Context,
        checkpointer=InMemorySaver(),
        images=ImageStore(paths=False),
    )
    serve(build_app(graph), port)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
