"""Frozen answers on disk, shared by epochs, stages, runs and processes (design decision 5).

LangGraph's SQLite cache under `mmedagent_graph.frozen`: what a frozen model has once answered is not asked again.

A model of this machine (`clinic:`, `transformers:`) goes by a fingerprint of its weights, but a served one
(`vllm:NAME`, `openai:NAME`) by its name alone: who serves other weights under the same name removes `answers.db`, or
takes another `--runs`.

For evaluation on many machines the same answers can lie in PostgreSQL, which all of them share: `answers_at` takes a
file or the database's URL.

Invariant: processes of one machine share a file, and machines never do: SQLite's write-ahead log is kept in shared
memory, so it does not work over a network's file system (sqlite.org/wal.html). What both machines want to know, both
ask.
"""

import asyncio
import datetime
import os
import socket
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langgraph.cache.base import BaseCache, FullKey, Namespace
from langgraph.cache.sqlite import SqliteCache

if TYPE_CHECKING:
    from psycopg_pool import ConnectionPool

POSTGRES = ("postgresql://", "postgres://")
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


def answers_at(place: str | Path, seed: int) -> BaseCache[Any]:
    """The answers of a seed in SQLite, or in the PostgreSQL database of a URL; other seeds' samples are others.

    Args:
        place: the file (`answers.db`: that of seed 0 is `answers-0.db`), or the URL.
        seed: of the run.

    Raises:
        ValueError: if PostgreSQL's driver is not installed, or the database cannot be reached.
    """
    if not str(place).startswith(POSTGRES):
        path = Path(place)
        return shared_answers(path.with_name(f"{path.stem}-{seed}{path.suffix}"))
    try:
        from psycopg_pool import ConnectionPool, PoolTimeout
    except ModuleNotFoundError as error:
        raise ValueError(f"cache: a database needs {error.name}; pip install 'mmedagent-graph[postgres]'") from error
    pool = ConnectionPool(str(place), min_size=1, max_size=8, open=False, kwargs={"autocommit": True})
    try:
        pool.open(wait=True, timeout=PATIENCE)
    except PoolTimeout as error:
        pool.close()
        raise ValueError(f"cache: the database does not answer within {PATIENCE:g} s ({error})") from error
    return PostgresCache(pool, seed)


class PostgresCache(BaseCache[Any]):
    """A LangGraph cache in PostgreSQL; LangGraph brings none (its own are memory, SQLite and Redis).

    Args:
        pool: open connections that commit each statement.
        seed: whose answers these are.
    """

    def __init__(self, pool: "ConnectionPool[Any]", seed: int) -> None:
        super().__init__()
        self._pool, self._seed = pool, seed
        with pool.connection() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(727201)")  # two that make one table collide
            connection.execute(
                "CREATE TABLE IF NOT EXISTS mmedagent_answers (seed bigint, namespace text, key text, "
                "expires timestamptz, encoding text NOT NULL, value bytea NOT NULL, PRIMARY KEY (seed, namespace, key))"
            )

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, Any]:
        """The values of those keys that have one."""
        by_name = {(_joined(namespace), key): (namespace, key) for namespace, key in keys}
        with self._pool.connection() as connection:
            rows = connection.execute(
                "SELECT namespace, key, encoding, value FROM mmedagent_answers JOIN unnest(%s::text[], %s::text[]) "
                "AS asked (namespace, key) USING (namespace, key) "
                "WHERE seed = %s AND (expires IS NULL OR expires > now())",
                ([name for name, _ in by_name], [key for _, key in by_name], self._seed),
            ).fetchall()
        return {by_name[name, key]: self.serde.loads_typed((encoding, value)) for name, key, encoding, value in rows}

    def set(self, pairs: Mapping[FullKey, tuple[Any, int | None]]) -> None:
        """Keep values, each for so many seconds, or for good (None)."""
        now = datetime.datetime.now(datetime.UTC)
        rows = []
        for (namespace, key), (value, seconds) in pairs.items():
            expires = None if seconds is None else now + datetime.timedelta(seconds=seconds)
            rows.append((self._seed, _joined(namespace), key, expires, *self.serde.dumps_typed(value)))
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO mmedagent_answers VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (seed, namespace, key) "
                "DO UPDATE SET expires = excluded.expires, encoding = excluded.encoding, value = excluded.value",
                rows,
            )

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Forget all, or these namespaces."""
        with self._pool.connection() as connection:
            if namespaces is None:
                connection.execute("DELETE FROM mmedagent_answers WHERE seed = %s", (self._seed,))
            else:
                names = [_joined(namespace) for namespace in namespaces]
                forget = "DELETE FROM mmedagent_answers WHERE seed = %s AND namespace = ANY(%s)"
                connection.execute(forget, (self._seed, names))

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, Any]:
        """As `get`."""
        return await asyncio.to_thread(self.get, keys)

    async def aset(self, pairs: Mapping[FullKey, tuple[Any, int | None]]) -> None:
        """As `set`."""
        await asyncio.to_thread(self.set, pairs)

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """As `clear`."""
        await asyncio.to_thread(self.clear, namespaces)


def _joined(namespace: Namespace) -> str:
    return ",".join(namespace)
