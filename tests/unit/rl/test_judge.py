"""The judge: what it is shown, what counts as its verdict, what is not asked twice, and what its failure means."""

import asyncio
import logging

import pytest
from fakes import INPUT_TOKENS, OUTPUT_TOKENS, FakeModel, answers, breaks, pictures, says, words
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.cache.memory import InMemoryCache
from langgraph.cache.sqlite import SqliteCache

from rl.grading import Grading
from rl.judge import build_judge, judge_of
from rl.traces import CallRecorder

ASKED = {"question": "Where is it?", "key": "left lung", "answer": "the lung on the left"}
CORRECT, INCORRECT = "<think>same</think><answer>correct</answer>", "<think>not</think><answer>incorrect</answer>"


@pytest.fixture(params=["invoke", "ainvoke"])
def ask(request):
    def ask(judge, asked=ASKED, config=None):
        if request.param == "invoke":
            return judge.invoke(asked, config)
        return asyncio.run(judge.ainvoke(asked, config))

    return ask


def graded(judge, trace):
    return asyncio.run(Grading.parse(["judge"], {"judge": judge}).grade(trace))


@pytest.fixture
def open_answer(trace):
    """A trace of an open question, that decided so."""

    def make(decided, key="left lung", **fields):
        return trace(options=[], answer=key, decision={"answer": decided}, **fields)

    return make


# The graph


def test_the_judge_sees_question_key_and_answer_and_nothing_else(ask):
    model = says(CORRECT)
    ask(build_judge(model))
    (messages,) = model.seen
    assert [type(message) for message in messages] == [SystemMessage, HumanMessage]
    assert messages[1].content == (
        "Question: Where is it?\nRight answer: left lung\nCandidate's answer: the lung on the left"
    )
    assert "correct, incorrect" in words(messages)
    assert pictures(messages) == []


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (CORRECT, True),
        (INCORRECT, False),
        ("Correct.", True),
        ("The answer is: incorrect", False),
        ("<answer>correct or incorrect</answer>", None),
        ("<answer>not incorrect</answer>", None),
        ("<answer>B</answer>", None),  # the verdicts have no letters
        ("<think>correct</think>", None),
        ("<think>correct", None),
        ("", None),
    ],
)
def test_a_verdict_is_what_the_strict_reader_reads(ask, text, verdict):
    assert ask(build_judge(says(text)))["correct"] is verdict


@pytest.mark.parametrize("of", [InMemoryCache, None], ids=["memory", "disk"])
def test_nothing_is_judged_twice(ask, of, tmp_path):
    cache = of() if of else SqliteCache(path=str(tmp_path / "verdicts.db"))
    model = says(CORRECT)
    first, second = (ask(build_judge(model, cache)) for _ in range(2))
    assert len(model.seen) == 1
    assert (first["correct"], second["correct"]) == (True, True)
    tokens = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    assert first["usage"] == {"judge": {"calls": 1, "cached": 0, **tokens}}
    assert second["usage"] == {"judge": {"calls": 0, "cached": 1, "input_tokens": 0, "output_tokens": 0}}


@pytest.mark.parametrize("other", [{"question": "Which?"}, {"key": "right lung"}, {"answer": "lungs"}], ids=str)
def test_something_else_is_judged_anew(ask, other):
    model = says(CORRECT)
    judge = build_judge(model, InMemoryCache())
    for asked in (ASKED, {**ASKED, **other}, ASKED):
        ask(judge, asked)
    assert len(model.seen) == 2


def test_the_judge_is_a_node_that_callbacks_see(ask):
    recorder = CallRecorder()
    ask(build_judge(says(CORRECT)), config={"callbacks": [recorder]})
    assert [(call.node, call.text) for call in recorder.calls] == [("judge", CORRECT)]


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        (lambda state: {"correct": state["key"] in state["answer"]}, False),
        (lambda state: {"correct": None}, None),
        (lambda state: "correct", True),
    ],
    ids=["mapping", "no verdict", "text"],
)
def test_a_judge_of_ones_own(ask, own, verdict):
    assert ask(build_judge(own))["correct"] is verdict


def test_a_judge_of_ones_own_must_say_yes_or_no(ask):
    with pytest.raises(ValueError, match=r"judge\.correct: 'yes' is no verdict; it must be True, False or None"):
        ask(build_judge(lambda _: {"correct": "yes"}))


def test_what_cannot_judge_is_refused_at_once():
    with pytest.raises(ValueError, match="judge: cannot use a int"):
        judge_of(3)
    with pytest.raises(ValueError, match="judge: model: 'gpt' is not of the form"):
        judge_of("gpt")


# The grader


@pytest.mark.parametrize(("text", "reward"), [(CORRECT, 1.0), (INCORRECT, 0.0)])
def test_the_verdict_is_the_reward(open_answer, text, reward):
    done = graded(judge_of(says(text)), open_answer("the lung on the left"))
    assert (done.rewards, done.reward) == ({"judge": reward}, reward)


@pytest.mark.parametrize(("decided", "reward"), [("Left lung.", 1.0), (None, 0.0)])
def test_the_key_itself_and_an_unreadable_answer_need_no_judge(open_answer, decided, reward):
    model = breaks(RuntimeError("asked"))
    assert graded(judge_of(model), open_answer(decided)).reward == reward
    assert model.seen == []


def test_without_a_key_or_a_decision_there_is_nothing_to_judge(trace, open_answer):
    model = says(CORRECT)
    undecided = graded(judge_of(model), trace())
    unlabelled = graded(judge_of(model), open_answer("lung", key=None))
    assert (undecided.reward, unlabelled.reward, model.seen) == (None, None, [])


class RefusedError(Exception):
    """A provider's refusal, which quotes the request."""

    status_code = 422


QUOTED = "Where is it? left lung; the lung on the left"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError(QUOTED), "ValueError"),
        (TimeoutError(QUOTED), "TimeoutError"),
        (RefusedError(QUOTED), "RefusedError 422"),
    ],
    ids=["of our own", "slow", "refused"],
)
def test_a_judge_that_fails_leaves_the_trace_ungraded_and_says_so_without_the_case(open_answer, error, kind, caplog):
    with caplog.at_level(logging.WARNING):
        done = graded(judge_of(breaks(error)), open_answer("the lung on the left", question="Where is it?"))
    assert (done.reward, done.ungraded) == (None, ["judge"])
    assert [record.getMessage() for record in caplog.records] == [f"judge: case 'case-1' cannot be graded: {kind}"]
    assert "lung" not in caplog.text
    assert "Where" not in caplog.text


def test_a_verdict_that_cannot_be_read_leaves_the_trace_ungraded_and_says_so(open_answer, caplog):
    done = graded(judge_of(answers("perhaps")), open_answer("lung"))
    assert (done.reward, done.ungraded) == (None, ["judge"])
    assert "judge: case 'case-1' cannot be graded: its verdict could not be read" in caplog.text


def test_a_judge_that_is_down_for_a_moment_is_asked_again_and_nothing_of_the_case_is_logged(open_answer, caplog):
    down = [True]

    def fickle(_):
        if down:
            down.clear()
            raise ConnectionError(QUOTED)
        return CORRECT

    model = FakeModel(answer=fickle)
    with caplog.at_level(logging.DEBUG):
        assert graded(judge_of(model), open_answer("lung")).reward == 1.0
    assert len(model.seen) == 2
    assert "a node is tried again after ConnectionError" in caplog.text
    assert "lung" not in caplog.text


def test_the_same_answer_of_another_rollout_is_not_judged_again(open_answer):
    model = says(INCORRECT)
    judge = judge_of(model, InMemoryCache())
    assert [graded(judge, open_answer("lung")).reward for _ in range(2)] == [0.0, 0.0]
    assert len(model.seen) == 1


def test_a_failure_is_not_kept(open_answer):
    cache = InMemoryCache()
    assert graded(judge_of(breaks(ValueError("away")), cache), open_answer("lung")).reward is None
    assert graded(judge_of(says(CORRECT), cache), open_answer("lung")).reward == 1.0


@pytest.mark.parametrize("of", [InMemoryCache, None], ids=["memory", "disk"])
def test_a_verdict_that_cannot_be_read_is_not_kept(ask, of, tmp_path):
    cache = of() if of else SqliteCache(path=str(tmp_path / "verdicts.db"))
    said = iter(["perhaps", CORRECT])
    model = FakeModel(answer=lambda _: next(said))
    assert [ask(build_judge(model, cache))["correct"] for _ in range(3)] == [None, True, True]
    assert len(model.seen) == 2


# A group is judged at once


class Wavering:
    """A judge of one's own that takes its time, and changes its mind with every call."""

    def __init__(self, *verdicts):
        self.verdicts, self.asked = verdicts, []

    async def __call__(self, state):
        self.asked.append((state["question"], state["key"], state["answer"]))
        verdict = self.verdicts[(len(self.asked) - 1) % len(self.verdicts)]
        await asyncio.sleep(0.01)
        if isinstance(verdict, Exception):
            raise verdict
        return {"correct": verdict}


def graded_at_once(judge, traces):
    return [done.reward for done in asyncio.run(Grading.parse(["judge"], {"judge": judge}).grade_all(traces))]


def test_equal_answers_of_a_group_get_one_verdict(open_answer):
    own = Wavering(True, False)
    assert graded_at_once(judge_of(own), [open_answer("lung") for _ in range(8)]) == [1.0] * 8
    assert len(own.asked) == 1


@pytest.mark.parametrize("other", [{"question": "Which?"}, {"key": "heart"}, {"decided": "lungs"}], ids=str)
def test_what_differs_is_judged_by_itself(open_answer, other):
    own = Wavering(True, False)
    traces = [open_answer(**{"decided": "lung", **fields}) for fields in ({}, other)]
    assert graded_at_once(judge_of(own), traces) == [1.0, 0.0]


@pytest.mark.parametrize("failure", [ValueError("away"), None], ids=["failed", "unread"])
def test_what_is_no_verdict_is_not_remembered(open_answer, failure, caplog):
    """Two traces share the failure, and each is reported; the next one is judged anew, and after it nobody."""
    own = Wavering(failure, True)
    judge = judge_of(own)
    assert graded_at_once(judge, [open_answer("lung", case=name) for name in "ab"]) == [None, None]
    assert ["'a'" in caplog.messages[0], "'b'" in caplog.messages[1], len(caplog.messages)] == [True, True, 2]
    assert [graded_at_once(judge, [open_answer("lung")] * 2) for _ in range(2)] == [[1.0, 1.0]] * 2
    assert len(own.asked) == 2


def test_one_that_stops_waiting_does_not_take_the_others_with_it(open_answer):
    own = Wavering(True)
    judge = judge_of(own)

    async def group():
        first, second = (asyncio.ensure_future(judge(open_answer("lung"))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(group()) == 1.0
    assert len(own.asked) == 1


def test_what_an_event_loop_left_unfinished_is_asked_again_in_the_next(open_answer):
    own = Wavering(True)
    judge = judge_of(own)

    async def abandoned():
        waiting = asyncio.ensure_future(judge(open_answer("lung")))
        while not own.asked:
            await asyncio.sleep(0)
        assert not waiting.done()

    asyncio.run(abandoned())
    assert graded(judge, open_answer("lung")).reward == 1.0
    assert len(own.asked) == 2


def test_event_loops_that_run_at_a_time_do_not_wait_for_each_other(open_answer):
    own = Wavering(True)
    judge = judge_of(own)
    with asyncio.Runner() as other:

        async def begun():
            waiting = asyncio.ensure_future(judge(open_answer("lung")))
            while not own.asked:
                await asyncio.sleep(0)
            return waiting

        async def end(waiting):
            return await waiting

        waiting = other.run(begun())
        assert graded(judge, open_answer("lung")).reward == 1.0
        assert other.run(end(waiting)) == 1.0
    assert len(own.asked) == 2
