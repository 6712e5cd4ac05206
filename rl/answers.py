"""Frozen answers on disk, shared by epochs, stages, runs and processes (design decision 5).

LangGraph's SQLite cache under `mmedagent_graph.frozen`: what a frozen model has once answered is not asked again.

A model of this machine (`clinic:`, `transformers:`) goes by a fingerprint of its weights, but a served one
(`vllm:NAME`, `openai:NAME`) by its name alone: who serves other weights under the same name removes `answers.db`, or
takes another `--runs`.

Invariant: processes of one machine share a file, and machines never do: SQLite's write-ahead log is kept in shared
memory, so it does not work over a network's file system (sqlite.org/wal.html). What both machines want to know, both
ask.
"""

import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

from langgraph.cache.base import BaseCache
from langgraph.cache.sqlite import SqliteCache

PATIENCE = 30.0
"""Seconds to wait for another process that is making the same file."""


def answers_file(runs: Path) -> Path:
    """The file of the answers in a folder of runs: where the run spans machines, one for each."""
    everywhere, here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return runs / (f"answers-{socket.gethostname()}.db" if everywhere > here else "answers.db")


def shared_answers(path: Path) -> BaseCache[Any]:
    """The answers in a file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return SqliteCache(path=str(path))
        except sqlite3.OperationalError:  # "database is locked": another process makes it in this instant
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
