"""Trials: whatever stops one, nothing finished is lost, and no finished call is made again."""

import dataclasses
import functools
import json

import pytest
from casts import md_agents_cast, med_agents_cast
from fakes import FakeModel, answers, graph, refers
from hypothesis import given
from hypothesis import strategies as st
from langgraph.cache.memory import InMemoryCache

from mmedagent_graph.baselines import md_agents, med_agents
from rl.datasets import LabeledCase
from rl.prices import Budget
from rl.store import read_traces
from rl.traces import NodeCall
from rl.trials import Shard, Trial, consult

CT = "<answer>CT</answer>"
brief = functools.partial(md_agents, rounds=1, turns=1)
CASES = [LabeledCase(f"case-{i}", f"Number {i}?", "CT", ["CT", "MRI"], groups={"organ": "Head"}) for i in range(12)]


class Priced(FakeModel):
    """A fake with a name to look its price up by."""

    model_name: str = "fake"


@pytest.fixture
def trial(tmp_path):
    return Trial(tmp_path / "trial")


def told(trial):
    return {trace.case: trace for trace in trial.traces()}


def failed(trial):
    return {case: error for case, error in trial.outcomes().items() if error is not None}


async def test_every_case_has_a_trace(trial, images):
    counts = await trial.run(graph(images=images), CASES, images, 4, Budget())
    assert counts == {"done": 12, "failed": 0, "left": 0}
    traces = told(trial)
    assert set(traces) == {case.id for case in CASES}
    one = traces["case-3"]
    assert (one.decided, one.right, one.tier, one.groups) == ("CT", True, "easy", {"organ": "Head"})
    assert [call.node for call in one.calls] == ["triage", *["specialist"] * 3, "attending"]
    assert (one.question, one.node, one.text) == ("Number 3?", "attending", "<think>Seen.</think><answer>CT</answer>")


async def test_several_votes_are_no_one_text(trial, images):
    await trial.run(graph(images=images, votes=3), CASES[:1], images, 1, Budget())
    (one,) = trial.traces()
    assert (one.decided, one.text) == ("CT", None)


async def test_a_folder_of_trials_is_read_as_a_training_run_is(trial, images):
    await trial.run(graph(images=images), CASES[:3], images, 1, Budget())
    assert sorted(read_traces(trial.folder.parent), key=str) == sorted(trial.traces(), key=str)


async def test_what_is_done_is_not_done_again(trial, images):
    triage = refers()
    await trial.run(graph(images=images, triage=triage), CASES[:5], images, 2, Budget())
    counts = await trial.run(graph(images=images, triage=triage), CASES, images, 2, Budget())
    assert counts == {"done": 12, "failed": 0, "left": 0}
    assert len(triage.seen) == 12


async def test_a_failed_case_is_listed_and_tried_again(trial, images):
    def fails(messages):
        if "Number 7" in messages[-1].text:
            raise RuntimeError("away")
        return "<answer>CT</answer>"

    counts = await trial.run(graph(images=images, attending=FakeModel(answer=fails)), CASES, images, 3, Budget())
    assert counts == {"done": 11, "failed": 1, "left": 0}
    assert failed(trial) == {"case-7": "RuntimeError: away"}
    counts = await trial.run(graph(images=images), CASES, images, 3, Budget())
    assert counts == {"done": 12, "failed": 0, "left": 0}
    assert failed(trial) == {}


async def test_a_torn_line_is_no_trace_and_its_case_finds_its_calls_in_the_cache(trial, images):
    cache, model = InMemoryCache(), answers("CT")
    made = graph(images=images, specialists=model, attending=model, cache=cache)
    await trial.run(made, CASES[:3], images, 1, Budget())
    path = trial.folder / "traces.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(told(trial)) == 2
    asked = len(model.seen)
    counts = await trial.run(made, CASES[:3], images, 1, Budget())
    assert counts["done"] == 3
    assert len(model.seen) == asked
    assert all(call.cached for call in told(trial)["case-2"].calls)


async def test_shards_are_read_as_one(trial, images):
    for index in range(3):
        part = Trial(trial.folder, Shard(index, 3))
        mine = [case for case in CASES if part.shard.holds(case.id)]
        assert await part.run(graph(images=images), CASES, images, 2, Budget()) == {
            "done": len(mine),
            "failed": 0,
            "left": 0,
        }
    assert set(told(trial)) == {case.id for case in CASES}
    assert len(list(trial.traces())) == 12
    assert sorted(path.name for path in trial.folder.iterdir()) == [f"traces.{i}-of-3.jsonl" for i in range(3)]


async def test_a_spent_budget_ends_it_cleanly_and_a_larger_one_goes_on(trial, images):
    model = Priced(answer=lambda messages: "Surgeon" if "triage" in messages[0].text else "<answer>CT</answer>")
    made = graph(images=images, triage=model, specialists=model, attending=model)
    each = 5 * (7 * 1.0 + 3 * 2.0) / 1e6  # five calls of 7 and 3 tokens
    prices = {"fake": (1.0, 2.0)}
    counts = await trial.run(made, CASES, images, 1, Budget(2.5 * each, prices))
    assert counts == {"done": 3, "failed": 0, "left": 9}
    counts = await trial.run(made, CASES, images, 1, Budget(100, prices))
    assert counts == {"done": 12, "failed": 0, "left": 0}


async def test_a_ceiling_without_the_price_of_a_model_is_refused(trial, images):
    with pytest.raises(ValueError, match="max_dollars: what None costs is not known: its price must be in --prices"):
        await trial.run(graph(images=images), CASES, images, 2, Budget(1.0, {"other": (1.0, 1.0)}))


async def test_what_a_failed_case_cost_counts_also_afterwards(trial, images, tmp_path):
    def fails(messages):
        raise RuntimeError("away")

    model = Priced(answer=lambda messages: "Surgeon" if "triage" in messages[0].text else "<answer>CT</answer>")
    made = graph(images=images, triage=model, specialists=model, attending=Priced(answer=fails))
    prices, each = {"fake": (1.0, 2.0)}, (7 * 1.0 + 3 * 2.0) / 1e6
    budget = Budget(1.0, prices, tmp_path / "dollars.txt")
    await trial.run(made, CASES[:2], images, 1, budget)
    assert budget.spent == pytest.approx(8 * each)
    (tmp_path / "dollars.1-of-2.txt").write_text("1.0\n")  # another process's
    with (tmp_path / "dollars.txt").open("a") as file:
        file.write("0.5")  # a torn line
    for _ in range(2):
        known = Budget(1.0, prices, tmp_path / "dollars.txt")
        assert known.spent == pytest.approx(8 * each)
    known.add(NodeCall("triage", None, None, None, "fake", "", None, None, None, None, 7, 3))
    assert Budget(1.0, prices, tmp_path / "dollars.txt").spent == pytest.approx(9 * each)
    counts = await trial.run(made, CASES, images, 1, Budget(1e-9, prices, tmp_path / "dollars.txt"))
    assert counts == {"done": 0, "failed": 0, "left": 12}


async def test_a_case_without_one_of_its_specialists_is_no_result(trial, images):
    cache, down = InMemoryCache(), [True]

    def answer(messages):
        if down[0] and "Number 3" in messages[-1].text:
            raise RuntimeError("away")
        return "<answer>CT</answer>"

    model = FakeModel(answer=answer)
    made = graph(images=images, specialists=[model, answers("CT"), answers("CT")], cache=cache)
    assert await trial.run(made, CASES[:5], images, 1, Budget()) == {"done": 4, "failed": 1, "left": 0}
    assert "specialist 1: " in failed(trial)["case-3"]
    down[0] = False
    assert await trial.run(made, CASES[:5], images, 1, Budget()) == {"done": 5, "failed": 0, "left": 0}
    assert told(trial)["case-3"].tier == "easy"


async def test_a_case_without_one_of_its_votes_is_no_result(trial, images):
    once = []

    def answer(messages):
        once.append(1)
        if len(once) == 2:
            raise RuntimeError("away")
        return "<answer>CT</answer>"

    counts = await trial.run(
        graph(images=images, attending=FakeModel(answer=answer), votes=3), CASES[:1], images, 1, Budget()
    )
    assert counts["failed"] == 1
    assert failed(trial) == {"case-0": "failed: vote 2"}


@pytest.mark.parametrize(
    ("make", "model", "why"),
    [
        (med_agents, med_agents_cast().failing("question_analysis", 2), "specialist 2: TimeoutError: away"),
        (med_agents, med_agents_cast().failing("voting", 3), "voting Surgery 3 1"),
        (med_agents, med_agents_cast(lambda told: told["vote"] == 1).failing("advice", 1), "advice Cardiology 1 1"),
        (brief, md_agents_cast(moderator=CT).failing("final_answer", 5), "specialist 5: TimeoutError: away"),
        (brief, md_agents_cast(moderator=CT).failing("talk", 4), "talk Oncology 4 1"),
        (md_agents, md_agents_cast("high").failing("findings", 2), "specialist 2: TimeoutError: away"),
    ],
)
async def test_a_case_without_one_of_its_experts_is_no_result(trial, images, make, model, why):
    """The graph goes on without it, and decides."""
    made = make(model=model, images=images)
    given = CASES[0].given().fields(images)
    assert (await made.ainvoke(given))["decision"]["answer"]
    assert await trial.run(made, CASES[:1], images, 1, Budget()) == {"done": 0, "failed": 1, "left": 0}
    assert failed(trial) == {"case-0": f"failed: {why}"}


async def test_what_other_shards_have_done_is_done(trial, images):
    model = answers("CT")
    made = graph(images=images, attending=model)
    await Trial(trial.folder, Shard(0, 2)).run(made, CASES, images, 2, Budget())
    assert await trial.run(made, CASES, images, 2, Budget()) == {"done": 12, "failed": 0, "left": 0}
    assert len(model.seen) == 12
    line = next(iter((trial.folder / "traces.jsonl").open()))
    with (trial.folder / "traces.1-of-2.jsonl").open("w") as file:
        file.write(line)  # twice
        file.write(json.dumps({"id": json.loads(line)["id"], "error": "away"}) + "\n")
    assert len(list(trial.traces())) == 12
    assert failed(trial) == {}


@pytest.mark.parametrize(
    "change", [{"answer": "MRI"}, {"question": "Who?"}, {"options": ["CT", "PET"]}, {"context": "x"}, {"images": ["a"]}]
)
async def test_another_case_of_the_same_id_is_told(trial, images, change):
    await trial.run(graph(images=images), CASES[:2], images, 2, Budget())
    trial.check(CASES)
    with pytest.raises(ValueError, match="cases: 'case-0' was another when"):
        trial.check([dataclasses.replace(CASES[0], **change), *CASES[1:]])


async def test_a_trial_is_of_one_making(trial, images):
    trial.begin({"system": {"votes": 7}})  # nothing came of it
    made = {"system": {"votes": 3}, "seed": 0, "samples": None}
    trial.begin(made)
    trial.begin(dict(made))
    assert trial.settings == made
    await trial.run(graph(images=images), CASES[:1], images, 1, Budget())
    with pytest.raises(ValueError, match="was made with another system, seed; remove it, or give another --out"):
        trial.begin({"system": {"votes": 5}, "seed": 1, "samples": None})
    with pytest.raises(ValueError, match="another weights"):
        trial.begin({**made, "weights": "b"})


async def test_two_processes_cannot_write_the_same_shard(trial, images):
    await trial.run(graph(images=images), CASES[:1], images, 1, Budget())
    other = Trial(trial.folder)

    class Busy:
        async def ainvoke(self, *_):
            with pytest.raises(ValueError, match="another run is writing"):
                await other.run(graph(images=images), CASES, images, 1, Budget())
            raise RuntimeError("seen")

    await trial.run(Busy(), CASES[:2], images, 1, Budget())
    assert failed(trial) == {"case-1": "RuntimeError: seen"}


async def test_a_case_without_opinions_has_no_tier(images):
    made = graph(images=images, triage=answers("Nobody"), attending=answers("MRI"))
    trace = await consult(made, CASES[0], images)
    assert (trace.tier, trace.right) == (None, False)


async def test_nothing_of_the_key_is_given(trial, images):
    model = FakeModel(answer=lambda messages: json.dumps([message.text for message in messages]))
    case = LabeledCase("a", "Where?", "SECRET", groups={"organ": "SECRET"}, specialty="SECRET")
    trace = await consult(graph(images=images, triage=model, specialists=model, attending=model), case, images)
    assert not any("SECRET" in call.text for call in trace.calls)


@given(st.text(st.characters(exclude_categories=[])), st.integers(1, 9))
def test_a_case_is_in_one_shard(case, of):
    assert sum(Shard(index, of).holds(case) for index in range(of)) == 1


def test_shards_are_of_about_one_size():
    assert all(400 < sum(Shard(i, 4).holds(str(n)) for n in range(2000)) < 600 for i in range(4))


@pytest.mark.parametrize("text", ["2/2", "-1/2", "a", "1", "1/0", ""])
def test_no_shard(text):
    with pytest.raises(ValueError, match=r"shard: .* 0/4"):
        Shard.parse(text)


def test_a_shard():
    assert Shard.parse("1/4") == Shard(1, 4)
