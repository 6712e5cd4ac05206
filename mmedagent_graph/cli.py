"""Consultations on the command line.

    python -m mmedagent_graph consult --image scan.png --question "What is it?" --option nodule --option cyst
    python -m mmedagent_graph consult-many cases.jsonl --out results.jsonl

Exit codes: 0 decided (consult-many: every case has a result), 1 failed (consult-many: some case did), 2 bad input,
3 no decision (unreadable, or withheld by --abstain-below); 128 and the number of the signal that ended it: 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP, 141 nobody reads the output any more.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from langchain_core.runnables import RunnableConfig
from langgraph.cache.base import BaseCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, RetryPolicy
from pydantic import ValidationError
from tqdm import tqdm

from mmedagent_graph.case import Case
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.defaults import default_graph
from mmedagent_graph.flags import parser
from mmedagent_graph.images import ImageStore
from mmedagent_graph.many import Results, check_cases, consult_many, consulted, in_one_line, read_cases
from mmedagent_graph.terminal import Terminal, clean

DECIDED, FAILED, BAD_INPUT, NO_DECISION, STOPPED = 0, 1, 2, 3, 128
SHOWN = 500
"""So many characters of a failure are shown; --debug shows all."""


class ConsultationError(Exception):
    """The consultation itself failed; its cause says how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever a model says can be printed
    given = parser(_consult, _consult_many, __doc__).parse_args(arguments)
    with _stoppable() as signals:
        try:
            code: int = given.command(given)
            return code
        except (KeyboardInterrupt, asyncio.CancelledError):
            return STOPPED + (signals or [signal.SIGINT])[0]
        except BrokenPipeError:  # whoever read our output has enough of it
            if sys.stdout:  # what is left in it would be written at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return STOPPED + 13  # SIGPIPE
        except Exception as error:
            if given.debug:
                traceback.print_exc()
            _tell(f"error: {_told(error)}")
            return BAD_INPUT if isinstance(error, ValueError) else FAILED


def _consult(given: argparse.Namespace) -> int:
    """One consultation."""
    if given.review and (given.json or not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout))):
        raise ValueError("--review asks on the terminal: it goes neither with --json nor without one")
    if not sys.stdout:
        raise ValueError("stdout is closed: there is nowhere to show the consultation")
    images = _store(given)
    asked = {"question": given.question, "options": given.option, "images": given.image, "context": given.context}
    case = Case.of(asked).fields(images)  # before a model is loaded, and told apart from what fails later
    with contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext():
        saver = InMemorySaver() if given.review else None
        graph = _graph(given, images, review=given.review, checkpointer=saver)
        terminal = None if given.json else Terminal(sys.stdout)
        result = _run(graph, case, terminal)
    if terminal:
        terminal.spent(result["usage"])
    else:
        print(json.dumps(consulted(result)), flush=True)
    return NO_DECISION if result["decision"]["answer"] is None else DECIDED


def _run(graph: Consultation, given: Any, terminal: Terminal | None) -> dict[str, Any]:
    """The result of a consultation; a reviewer is asked between the runs, where Ctrl-C is heard at once."""

    async def run() -> dict[str, Any]:
        result: dict[str, Any] = {}
        async with contextlib.aclosing(_failing(graph, given)) as parts:
            async for mode, chunk in parts:
                if mode == "values":
                    result = chunk
                elif terminal:
                    terminal.show(chunk)
        return result

    with asyncio.Runner() as runner:
        while True:
            result = runner.run(run())
            if not (terminal and "__interrupt__" in result):
                return result
            try:
                given = Command(resume=terminal.ask(result["__interrupt__"][0].value))
            except EOFError:
                raise KeyboardInterrupt from None


async def _failing(graph: Consultation, given: Any) -> AsyncGenerator[Any, None]:
    """What the consultation says and comes to; what goes wrong in it is a `ConsultationError`, and nothing else is."""
    config: RunnableConfig = {"configurable": {"thread_id": "terminal"}}
    parts = graph.astream(given, config, stream_mode=["custom", "values"], output_keys=graph.output_channels)
    try:
        async with contextlib.aclosing(cast(AsyncGenerator[Any, None], parts)):
            async for part in parts:
                yield part
    except Exception as error:
        raise ConsultationError from error


def _consult_many(given: argparse.Namespace) -> int:
    """The cases of a file."""
    with _usable("cases", given.cases, "a JSONL file with one case a line"):
        ids = check_cases(given.cases, given.split, given.limit)
    with _usable("--out", given.out, "a JSONL file"):
        results = Results(given.out, ids)
    with contextlib.closing(results):
        before = len(results.done)
        if before:
            _tell(f"{before} of {len(ids)} cases are skipped: they are done in {str(given.out)!r}")
        if before == len(ids):
            return DECIDED
        graph = _graph(given, _store(given))
        waiting = read_cases(given.cases, given.split, given.limit, without=results.done)
        done, failed = before, 0
        bar = _progress(before, len(ids))

        def keep(line: dict[str, Any]) -> None:
            nonlocal done, failed
            results.keep(line)
            done, failed = done + ("error" not in line), failed + ("error" in line)
            bar.set_postfix(done=done, failed=failed, refresh=False)
            bar.update()

        try:
            with bar:
                asyncio.run(consult_many(graph, waiting, keep, given.concurrency))
        finally:
            left = len(ids) - done - failed
            again = "; the same command goes on from here" if results.lasting and (failed or left) else ""
            _tell(f"{done} done, {failed} failed, {left} left{again}")
    return FAILED if failed or left else DECIDED


def _progress(done: int, cases: int) -> "tqdm[Any]":
    """A bar on stderr; a log need not hold every step of it."""
    often = 0.1 if _is_terminal(sys.stderr) else 30.0  # seconds
    return tqdm(
        initial=done,
        total=cases,
        unit="case",
        mininterval=often,
        miniters=1,  # or it would be drawn in between by a thread of its own
        dynamic_ncols=True,
        disable=not sys.stderr,
    )


def _graph(given: argparse.Namespace, images: ImageStore, **more: Any) -> Consultation:
    specialists = given.specialists
    return default_graph(
        triage=given.triage,
        specialists=specialists[0] if specialists and len(specialists) == 1 else specialists,
        attending=given.attending,
        hospital=given.hospital,
        votes=given.votes,
        abstain_below=given.abstain_below,
        max_referrals=given.max_referrals,
        timeout=given.timeout,
        retry_policy=RetryPolicy(max_attempts=given.retries + 1) if given.retries else None,
        cache=_cache(given.cache) if given.cache else None,
        images=images,
        **more,
    )


def _cache(path: Path) -> BaseCache[Any]:
    try:
        import sqlite3

        from langgraph.cache.sqlite import SqliteCache
    except ModuleNotFoundError as error:
        raise ValueError(f"--cache needs {error.name}; pip install 'mmedagent-graph[sqlite]'") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return SqliteCache(path=str(path))
    except (sqlite3.Error, OSError) as error:
        raise ValueError(f"--cache: cannot use {str(path)!r} ({error}); give an SQLite file, or a new one") from error


def _store(given: argparse.Namespace) -> ImageStore:
    with _usable("--images", given.images, "a folder"):
        return ImageStore(given.images)


@contextlib.contextmanager
def _usable(name: str, path: Path | None, valid: str) -> Iterator[None]:
    """Take it for bad input if the system does not let us use a path that was given."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{name}: cannot use {str(path)!r} ({error.strerror}); give {valid}") from error


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Take SIGTERM and SIGHUP as a Ctrl-C, so that temporary images are removed; gives the signals that came."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise KeyboardInterrupt from None
        for task in asyncio.all_tasks(loop):  # an exception from here would leave them half done
            loop.call_soon_threadsafe(task.cancel)

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    taken = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # Windows knows no SIGHUP
    ours = {number for number in taken if signal.getsignal(number) != signal.SIG_IGN}  # nohup ignores it
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(error: BaseException) -> str:
    """What to tell of an error."""
    if isinstance(error, ValidationError):
        return in_one_line(error)
    if isinstance(error, ValueError):
        return str(error)
    cause = error.__cause__ if isinstance(error, ConsultationError) else error
    head = "the consultation failed: " if isinstance(error, ConsultationError) else ""
    return f"{head}{type(cause).__name__}: {' '.join(str(cause).split())}"[:SHOWN]


def _tell(text: str) -> None:
    if sys.stderr:  # without one, print would take stdout
        print(clean(text), file=sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
