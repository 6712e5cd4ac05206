"""Frozen answers on disk, shared by epochs, stages, runs and processes (design decision 5).

LangGraph's SQLite cache under `mmedagent_graph.frozen`: what a frozen model has once answered is not asked again.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any

from langgraph.cache.base import BaseCache
from langgraph.cache.sqlite import SqliteCache

PATIENCE = 30.0
"""Seconds to wait for another process that is making the same file."""


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
