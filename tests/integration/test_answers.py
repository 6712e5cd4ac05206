"""Frozen answers in a real PostgreSQL: the same cache as LangGraph's own in SQLite."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.messages import AIMessage

from rl import answers
from rl.answers import answers_at
from tests.integration.postgres import MISSING, database, postgres, programs

ANSWER = AIMessage("CT", response_metadata={"token_ids": [1, 2], "seconds": 0.5}, usage_metadata=None)
KEY, OTHER, ELSEWHERE = (("a", "triage"), "1"), (("a", "triage"), "2"), (("a", "attending"), "1")


@pytest.fixture(scope="module")
def server():
    if not programs():
        pytest.skip(MISSING)
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    if request.param == "sqlite":
        yield tmp_path / "answers.db"
        return
    with database(request.getfixturevalue("server")) as url:
        yield url


def test_what_is_kept_is_found_by_its_key_alone(place):
    cache = answers_at(place, 0)
    assert cache.get([KEY, OTHER]) == {}
    cache.set({KEY: (ANSWER, None), ELSEWHERE: (AIMessage("PET"), None)})
    assert cache.get([KEY, OTHER, ELSEWHERE]) == {KEY: ANSWER, ELSEWHERE: AIMessage("PET")}
    assert answers_at(place, 0).get([KEY]) == {KEY: ANSWER}  # another process's
    cache.set({KEY: (AIMessage("MRI"), None)})
    assert cache.get([KEY])[KEY].text == "MRI"


def test_a_time_limit_is_kept(place):
    cache = answers_at(place, 0)
    cache.set({KEY: (ANSWER, 1), OTHER: (ANSWER, 100)})
    time.sleep(1.2)
    assert set(cache.get([KEY, OTHER])) == {OTHER}


def test_namespaces_are_forgotten(place):
    cache = answers_at(place, 0)
    cache.set(dict.fromkeys([KEY, OTHER, ELSEWHERE], (ANSWER, None)))
    cache.clear([("a", "triage")])
    assert set(cache.get([KEY, OTHER, ELSEWHERE])) == {ELSEWHERE}
    cache.clear()
    assert cache.get([ELSEWHERE]) == {}


def test_seeds_have_answers_of_their_own(place):
    first, second = answers_at(place, 0), answers_at(place, 1)
    first.set({KEY: (ANSWER, None)})
    assert second.get([KEY]) == {}
    second.set({KEY: (AIMessage("PET"), None)})
    second.clear()
    assert first.get([KEY]) == {KEY: ANSWER}


def test_async_callers(place):
    async def all_three():
        cache = answers_at(place, 0)
        await cache.aset({KEY: (ANSWER, None)})
        before = await cache.aget([KEY])
        await cache.aclear()
        return before, await cache.aget([KEY])

    assert asyncio.run(all_three()) == ({KEY: ANSWER}, {})


def test_many_may_come_first_and_write_at_once(place):
    def work(number):
        cache = answers_at(place, 0)
        for i in range(20):
            cache.set({(("many",), str(i)): (AIMessage(f"answer {i}"), None), (("own",), f"{number}"): (ANSWER, None)})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    keys = [(("many",), str(i)) for i in range(20)] + [(("own",), str(i)) for i in range(8)]
    assert set(answers_at(place, 0).get(keys)) == set(keys)


def test_a_database_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(answers, "PATIENCE", 0.3)
    with pytest.raises(ValueError, match="cache: the database does not answer within"):
        answers_at("postgresql://nobody:secret@127.0.0.1:1/none", 0)
