"""Checkpointers: a consultation outlives its process, and what it leaves behind is small. PostgreSQL is a real one."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import Command
from PIL import Image
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from mmedagent_graph import build_graph
from mmedagent_graph.images import ImageStore
from tests.integration.killed import CASE, FORMS, SAVERS, consult, given, is_sync, opened, plain, state_of, ward
from tests.integration.postgres import MISSING, database, postgres, programs

ROOT = Path(__file__).parents[2]
BED = {"configurable": {"thread_id": "bed 7"}}
OTHER_CASE = {"question": "Is the kidney swollen?", "options": ["left", "right", "both", "neither"]}
DOCTORS = ["doctor 1", "doctor 2", "doctor 3"]

Where = Callable[[str], str]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    if programs() is None:
        pytest.skip(MISSING)
    with postgres() as url:
        yield url


@pytest.fixture
def where(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Where]:
    """For each checkpointer the file or the URL of an empty database."""
    with contextlib.ExitStack() as databases:

        def place(saver: str) -> str:
            if "Postgres" in saver:
                return databases.enter_context(database(request.getfixturevalue("server")))
            (tmp_path / "sqlite").mkdir()
            return str(tmp_path / "sqlite" / "consultations.db")

        yield place


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def noise(path: Path, side: int) -> Path:
    """Pixels that no format makes smaller."""
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return noise(tmp_path / "picture.png", 32)


@pytest.fixture(scope="session")
def large_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = noise(tmp_path_factory.mktemp("large") / "picture.png", 1300)
    assert path.stat().st_size > 5_000_000
    return path


# The same with a checkpointer as without


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("saver", ["InMemorySaver", *SAVERS])
async def test_a_checkpointer_changes_nothing(
    saver: str, form: str, where: Where, store: ImageStore, picture: Path, caplog: pytest.LogCaptureFixture
):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        without = ward(store).invoke(given(form, picture))
        async with opened(saver, where(saver)) as checkpointer:
            graph = ward(store, checkpointer)
            result = await consult(graph, given(form, picture), BED)
            state = await state_of(graph, BED)
    assert plain(result) == plain(without)
    assert result["decision"]["opinions"] == 3
    assert {key: state.values[key] for key in result} == result
    assert state.values["case"] == {**CASE, "images": [f"sha256:{hashlib.sha256(picture.read_bytes()).hexdigest()}"]}
    assert (state.next, state.tasks) == ((), ())
    assert caplog.records == []


@pytest.mark.parametrize(
    ("saver", "strict"), [*((saver, "true") for saver in ["InMemorySaver", *SAVERS]), ("SqliteSaver", "false")]
)
def test_langgraph_has_nothing_to_warn_of(saver: str, strict: str, tmp_path: Path, where: Where, picture: Path):
    rounds = [[None]] * len(FORMS)
    log, results = die_and_go_on(
        *(tmp_path, where(saver), saver, picture, rounds),
        forms=FORMS,
        python=["-W", "error"],
        environment={"LANGGRAPH_STRICT_MSGPACK": strict},
    )
    assert log.count("done") == len(FORMS)
    assert results == [expected(tmp_path, picture, form=form) for form in FORMS]


# One thread, several patients


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize("form", ["path", "chat"])
@pytest.mark.parametrize("saver", ["InMemorySaver", *SAVERS])
async def test_a_thread_used_again_shows_nothing_of_the_earlier_case(
    saver: str, form: str, votes: int, where: Where, store: ImageStore, picture: Path
):
    async with opened(saver, where(saver)) as checkpointer:
        graph = ward(store, checkpointer, votes=votes)
        await consult(graph, given(form, picture), BED)
        assert len(traces_of_the_first(await saved(graph, BED), picture)) == 4
        result = await next_patient(graph, BED, picture)
    assert plain(result) == plain(ward(store, votes=votes).invoke(OTHER_CASE))


@pytest.mark.parametrize("saver", SAVERS)
async def test_nothing_of_an_unfinished_case_comes_into_the_next(
    saver: str, where: Where, tmp_path: Path, store: ImageStore, picture: Path
):
    place = where(saver)
    deaths = [{"node": "doctor 2", "kept": [1, 3]}, {"node": "attending", "kept": [1, 2, 3]}]
    log, _ = die_and_go_on(tmp_path, place, saver, picture, [[death] for death in deaths])
    assert log.count("killed") == len(deaths)
    async with opened(saver, place) as checkpointer:
        graph = ward(store, checkpointer)
        for number, death in enumerate(deaths):
            thread = {"configurable": {"thread_id": f"round {number}"}}
            assert (await state_of(graph, thread)).values["opinions"], death
            result = await next_patient(graph, thread, picture)
            assert plain(result) == plain(ward(store).invoke(OTHER_CASE)), death


async def next_patient(graph: Any, thread: Any, picture: Path) -> dict[str, Any]:
    """The other case, with a look at what is saved before every node."""
    result = await consult(graph, OTHER_CASE, thread, interrupt_before="*")
    seen = [traces_of_the_first(await saved(graph, thread), picture)]
    while (await state_of(graph, thread)).next:
        result = await consult(graph, None, thread, interrupt_before="*")
        seen.append(traces_of_the_first(await saved(graph, thread), picture))
    assert len(seen) >= 4
    assert not any(seen), seen
    return result


async def saved(graph: Any, thread: Any) -> str:
    """All that the checkpointer would show of a thread as it stands."""
    state, saver = await state_of(graph, thread), graph.checkpointer
    checkpoint = saver.get_tuple(thread) if is_sync(saver) else await saver.aget_tuple(thread)
    return repr((state.values, state.tasks, checkpoint.checkpoint, checkpoint.pending_writes))


def traces_of_the_first(shown: str, picture: Path) -> list[str]:
    with Image.open(picture) as image:
        seen = hashlib.sha256(image.tobytes()).hexdigest()[:8]
    first = [CASE["question"], CASE["options"][2], hashlib.sha256(picture.read_bytes()).hexdigest(), f"saw {seen}"]
    return [word for word in first if word in shown]


# Killed, and going on


def die_and_go_on(
    folder: Path,
    where: str,
    saver: str,
    picture: Path,
    rounds: list[list[Any]],
    *,
    forms: list[str] = FORMS[:1],
    votes: int = 1,
    options: dict[str, Any] | None = None,
    python: list[str] | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[list[str], list[dict[str, Any]]]:
    """What happened, and the results of the lives that came to an end."""
    log = folder / "log"
    plan = {
        "saver": saver,
        "where": where,
        "images": str(folder / "images"),
        "log": str(log),
        "image": str(picture),
        "rounds": rounds,
        "forms": forms,
        "votes": votes,
        "options": options or {},
    }
    before = len(log.read_text().splitlines()) if log.exists() else 0
    command = [sys.executable, *(python or []), "-m", "tests.integration.killed", json.dumps(plan)]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, "")
    return log.read_text().splitlines()[before:], [json.loads(line) for line in run.stdout.splitlines()]


def expected(folder: Path, picture: Path, votes: int = 1, form: str = "path") -> dict[str, Any]:
    """What is decided where nobody is killed."""
    return plain(ward(ImageStore(folder / "images of the sound"), votes=votes).invoke(given(form, picture)))


def calls(log: list[str], kind: str) -> list[str]:
    return sorted(line.removeprefix(f"{kind} ") for line in log if line.startswith(f"{kind} "))


@pytest.mark.parametrize("saver", SAVERS)
def test_killed_within_a_call_it_goes_on_with_that_call(saver: str, where: Where, tmp_path: Path, picture: Path):
    goes_on_with = [
        ({"node": "triage", "kept": []}, ["attending", *DOCTORS, "triage"]),
        ({"node": "doctor 2", "kept": []}, ["attending", *DOCTORS]),
        ({"node": "doctor 2", "kept": [1]}, ["attending", "doctor 2", "doctor 3"]),
        ({"node": "doctor 2", "kept": [1, 3]}, ["attending", "doctor 2"]),
        ({"node": "attending", "kept": [1, 2, 3]}, ["attending"]),
    ]
    place, sound = where(saver), expected(tmp_path, picture)
    log, results = die_and_go_on(tmp_path, place, saver, picture, [[death] for death, _ in goes_on_with])
    assert (log.count("killed"), results) == (len(goes_on_with), [])
    for happened, (death, again) in zip(rounds_of(log), goes_on_with, strict=True):
        assert not {f"end {node}" for node in again if "doctor" not in node} & set(happened), death

    picture.unlink()  # from here on the store must have it
    log, results = die_and_go_on(tmp_path, place, saver, picture, [[None]] * len(goes_on_with))
    for happened, (death, again) in zip(rounds_of(log), goes_on_with, strict=True):
        assert calls(happened, "start") == calls(happened, "end") == again, death
    assert results == [sound] * len(goes_on_with)


@pytest.mark.parametrize(
    ("saver", "votes", "when"),
    [*((saver, 1, "after") for saver in SAVERS), ("AsyncSqliteSaver", 3, "before"), ("PostgresSaver", 3, "before")],
)
def test_killed_at_any_point_it_loses_nothing(
    saver: str, votes: int, when: str, where: Where, tmp_path: Path, picture: Path
):
    rounds = [[{"operation": number, "when": when}, None] for number in range(1, 100)]
    log, results = die_and_go_on(tmp_path, where(saver), saver, picture, rounds, votes=votes)
    assert results == [expected(tmp_path, picture, votes)] * log.count("done")
    assert log.count("killed") == log.count("done") - 1 >= 10
    for happened in rounds_of(log):
        nothing_is_asked_again(happened)


def test_killed_at_any_point_it_loses_nothing_where_saving_is_not_waited_for(
    where: Where, tmp_path: Path, picture: Path
):
    saver = "AsyncSqliteSaver"
    rounds = [[{"operation": number, "when": "after"}, None] for number in range(1, 100)]
    log, results = die_and_go_on(tmp_path, where(saver), saver, picture, rounds, options={"durability": "async"})
    # Nodes that answer at once get ahead of it: one may be asked again, but the end is the same.
    assert results == [expected(tmp_path, picture)] * log.count("done")
    assert log.count("killed") == log.count("done") - 1 >= 10


@pytest.mark.parametrize("saver", SAVERS)
def test_killed_again_and_again_it_comes_to_its_end(saver: str, where: Where, tmp_path: Path, picture: Path):
    lives = [{"operation": 1, "when": "after"}] * 40
    log, results = die_and_go_on(tmp_path, where(saver), saver, picture, [lives])
    assert results == [expected(tmp_path, picture)]
    assert 5 <= log.count("killed") <= 20
    assert log[-1] == "done"
    nothing_is_asked_again(log)


def rounds_of(log: list[str]) -> list[list[str]]:
    return [happened.splitlines()[1:] for happened in "\n".join(log).split("round ")[1:]]


def nothing_is_asked_again(log: list[str]) -> None:
    for number, line in enumerate(log):
        if line.startswith("kept "):
            assert f"start {line.removeprefix('kept ')}" not in log[number:]
    assert set(Counter(calls(log, "kept")).values()) <= {1}


# What is left behind


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("saver", SAVERS)
async def test_a_large_image_leaves_a_small_checkpoint(
    saver: str, form: str, where: Where, store: ImageStore, large_picture: Path
):
    place = where(saver)
    async with opened(saver, place):
        pass
    empty = size(place) if "Postgres" in saver else 0
    async with opened(saver, place) as checkpointer:
        result = await consult(ward(store, checkpointer), given(form, large_picture), BED)
    assert len(result["opinions"]) == 3
    assert 5_000 < size(place) - empty < 100_000
    assert [path.read_bytes() for path in store.folder.iterdir()] == [large_picture.read_bytes()]


async def test_the_store_holds_an_image_once(where: Where, store: ImageStore, large_picture: Path):
    async with opened("AsyncSqliteSaver", where("AsyncSqliteSaver")) as checkpointer:
        graph = ward(store, checkpointer)
        for _ in range(2):
            runs = [(given(form, large_picture), {"configurable": {"thread_id": form}}) for form in FORMS]
            await asyncio.gather(*(consult(graph, *run) for run in runs))
    assert [path.stat().st_size for path in store.folder.iterdir()] == [large_picture.stat().st_size]


def size(place: str) -> int:
    """Every byte on disk: tables, indexes and TOAST, or the file and what lies beside it (a write-ahead log)."""
    if not place.startswith("postgresql:"):
        return sum(path.stat().st_size for path in Path(place).parent.iterdir())
    with psycopg.connect(place) as connection:
        tables = "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables"
        return int(connection.execute(tables).fetchone()[0])


# Many at once


@contextlib.asynccontextmanager
async def pooled(url: str):
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, min_size=2, max_size=8, kwargs=settings) as pool:
        checkpointer = AsyncPostgresSaver(pool)
        await checkpointer.setup()
        yield checkpointer


async def said(case: Any) -> dict[str, Any]:
    """Nobody says the same of two cases."""
    await asyncio.sleep(0)
    return {"answer": f"{case.get('doctor', 'attending')} of {case['question']}"}


async def test_sixty_four_consultations_at_once_wait_for_a_human_and_go_on(where: Where, store: ImageStore):
    url = where("AsyncPostgresSaver")
    threads = [{"configurable": {"thread_id": f"bed {number}"}} for number in range(64)]

    def reviewed(checkpointer: Any) -> Any:
        return build_graph(
            triage=lambda case: {"specialty": "Radiologist"},
            specialists=said,
            attending=said,
            review=True,
            images=store,
            checkpointer=checkpointer,
        )

    async with pooled(url) as checkpointer:
        graph = reviewed(checkpointer)
        cases = [{"question": f"case {number}"} for number in range(64)]
        paused = await asyncio.gather(*(graph.ainvoke(*run) for run in zip(cases, threads, strict=True)))
        shown = [result["__interrupt__"][0].value["decision"]["answer"] for result in paused]
        assert shown == [f"attending of case {number}" for number in range(64)]

    with psycopg.connect(url) as connection:  # nobody is connected any more
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert connection.execute(others).fetchone() == (1,)

    async with pooled(url) as checkpointer:
        graph = reviewed(checkpointer)
        verdicts = [
            {"action": "approve"} if number % 2 else {"action": "change", "answer": f"human of case {number}"}
            for number in range(64)
        ]
        resumed = [graph.ainvoke(Command(resume=v), thread) for v, thread in zip(verdicts, threads, strict=True)]
        for number, result in enumerate(await asyncio.gather(*resumed)):
            who = "attending" if number % 2 else "human"
            assert result["decision"]["answer"] == f"{who} of case {number}"
            assert [opinion["answer"] for opinion in result["opinions"]] == [
                f"{doctor} of case {number}" for doctor in (1, 2, 3)
            ]
