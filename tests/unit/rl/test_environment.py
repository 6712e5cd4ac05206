"""Between the trainer and the graph: prompts as they are now, completions to their end, each rollout on record once."""

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest
from langchain_core.messages import HumanMessage, SystemMessage

from rl.chat import text_turns
from rl.curriculum import Stage
from rl.environment import Environment
from rl.grading import PAPER, Grading, overlong_of
from rl.store import Rollouts, read_traces

GRADINGS = {node: Grading.parse(graders) for node, graders in PAPER.items()}
RIGHT, WRONG, TORN = "<think></think><answer>cyst</answer>", "<think></think><answer>scar</answer>", "<think>"
REFERRAL = "<think></think><answer>Radiologist</answer>"


class Graph:
    """Stands for `Rollout`: a prompt tells all that its trace holds, and every call is counted."""

    def __init__(self, images):
        self.images, self.asked, self.spared = images, 0, 0
        self.finished, self.referred = [], []

    def prompt(self, trace):
        heard = [opinion["answer"] for opinion in trace.opinions]
        content = [self.images.block(ref) for ref in trace.images]
        told = f"{trace.node} of {trace.case}: {trace.referral and trace.referral['specialty']} {heard}"
        return [SystemMessage("You are"), HumanMessage([*content, {"type": "text", "text": told}])]

    async def finish(self, trace, text):
        self.finished.append((trace.case, trace.node, text))
        said = text.partition("<answer>")[2].partition("<")[0] or None
        if trace.node == "triage":
            return dataclasses.replace(trace, text=text, referral={"specialty": said, "reasoning": ""})
        return dataclasses.replace(trace, text=text, decision=decision(said))

    async def refer(self, trace, text):
        self.referred.append((trace.case, text))
        opinion = {"specialty": text, "doctor": 1, "answer": text, "index": None, "reasoning": "", "error": None}
        referral = {"specialty": text, "reasoning": ""}
        return dataclasses.replace(trace, node="attending", referral=referral, opinions=[opinion], tier="hard")


def decision(answer):
    return {"answer": answer, "index": None, "reasoning": "", "agreement": None, "opinions": 0}


@pytest.fixture
def graph(images):
    return Graph(images)


BOTH = {"triage": 1.0, "attending": 1.0}


@pytest.fixture
def make(graph, tmp_path):
    def make(prompts, nodes=None, rank=0, gammas=None, gradings=GRADINGS, **rolled):
        stage = Stage("1-easy", 9, 0.0, {}, nodes or {"attending": 1.0}, gammas or {})
        record = Rollouts(tmp_path / "rollouts", rank)
        return Environment(stage, prompts, graph, gradings, record, tmp_path, **rolled)

    return make


def graded(environment, texts, rows=None, step=0):
    """The rewards of these completions, and what was logged."""
    logged = {}
    given = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[7] * (1 + list(dict.fromkeys(texts)).index(text)) for text in texts],
        "trace": rows or [0] * len(texts),
        "trainer_state": SimpleNamespace(global_step=step),
        "log_metric": logged.__setitem__,
        "log_extra": None,
        "prompts": None,
    }
    return asyncio.run(environment.reward(**given)), logged


# Prompts


def test_a_row_is_the_whole_prompt_its_images_and_its_trace(make, trace, images, png, opinions):
    refs = [images.put(png(color)) for color in ((9, 0, 0), (0, 9, 0))]
    traces = [trace(case="a", images=refs, opinions=opinions("cyst")), trace(case="b")]
    environment = make(traces)
    dataset = environment.dataset()
    assert dataset["trace"][:] == [0, 1]
    assert [row["prompt"] for row in dataset] == [text_turns(environment.rollout.prompt(one)) for one in traces]
    assert dataset[0]["prompt"][1]["content"] == "attending of a: Radiologist ['cyst']"
    assert [image.getpixel((0, 0)) for image in dataset[0]["images"]] == [(9, 0, 0), (0, 9, 0)]
    assert dataset[1]["images"] == []


def never(prompts):
    raise AssertionError("the policy was asked")


def test_frozen_prompts_stay_as_they_are(make, trace):
    environment = make([trace()])
    rows = [{"prompt": "as it is", "trace": 0}]
    assert environment.rows(rows, 5, never) == rows


class Policy:
    """Says after how many prompts it was asked, and keeps them."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        said = [(f"said-{len(self.asked) + i}", [len(self.asked) + i, 2]) for i in range(len(prompts))]
        self.asked += [turns[1]["content"] for turns, _ in prompts]
        return said


def joint(trace, n, **fields):
    """Triage and attending in turn; the attending's upstream is an old one."""
    old = {"specialty": "old", "reasoning": ""}
    return [
        trace(case=f"c{i}", node=["triage", "attending"][i % 2], referral=[None, old][i % 2], **fields)
        for i in range(n)
    ]


def rows_of(environment, places):
    return [{"prompt": "stale", "trace": i} for i in places for _ in range(2)]


def test_the_policys_own_triage_rolls_the_attendings_next_prompts(make, trace, graph, tmp_path):
    """Two prompts a step, anew every two steps: blocks of four, of which two are the attending's."""
    environment, policy = make(joint(trace, 10), BOTH, reroll=2, per_step=2), Policy()
    environment.dataset()
    rows = environment.rows(rows_of(environment, [0, 1]), 0, policy)
    assert policy.asked == ["triage of c1: None []", "triage of c3: None []"]  # as it came: nobody was heard
    assert [row["prompt"][1]["content"] for row in rows] == [
        *["triage of c0: None []"] * 2,
        *["attending of c1: said-0 ['said-0']"] * 2,
    ]
    rows = environment.rows(rows_of(environment, [2, 3]), 1, policy)
    assert len(policy.asked) == 2  # the same block
    assert rows[-1]["prompt"][1]["content"] == "attending of c3: said-1 ['said-1']"
    for step in (2, 3, 4):
        environment.rows(rows_of(environment, [2 * step, 2 * step + 1]), step, policy)
    assert policy.asked[2:] == ["triage of c5: None []", "triage of c7: None []", "triage of c9: None []"]
    assert sorted(graph.referred) == [(f"c{2 * i + 1}", f"said-{i}") for i in range(5)]
    assert sorted(path.name for path in tmp_path.glob("upstream-*")) == [
        f"upstream-00000{step}.parquet" for step in (0, 2, 4)
    ]
    assert [one.case for one in read_traces(tmp_path / "upstream-000002.parquet")] == ["c5", "c7"]


def test_the_policys_own_referral_is_on_record_with_its_tokens(make, trace, tmp_path):
    environment = make(joint(trace, 4), BOTH, reroll=2, per_step=2)
    environment.rows(rows_of(environment, [1]), 0, Policy())
    for one in (environment.prompts[1], next(read_traces(tmp_path / "upstream-000000.parquet"))):
        assert (one.calls[0].node, one.calls[0].text, one.calls[0].completion_ids) == ("triage", "said-0", [0, 2])


def test_a_resumed_stage_trains_on_the_prompts_that_were_rolled(make, trace, tmp_path):
    first = make(joint(trace, 8), BOTH, reroll=2, per_step=2)
    policy = Policy()
    expected = [first.rows(rows_of(first, [2 * step, 2 * step + 1]), step, policy) for step in range(4)]
    resumed = make(joint(trace, 8), BOTH, reroll=2, per_step=2)
    for step in (1, 3):  # in the middle of a block, and in the next one
        assert resumed.rows(rows_of(resumed, [2 * step, 2 * step + 1]), step, never) == expected[step]
    assert resumed.prompts[2:] == first.prompts[2:]


@pytest.mark.parametrize(
    ("checkpoint", "kept"), [(0, []), (1, [0]), (2, [0]), (3, [0, 2]), (4, [0, 2]), (5, [0, 2, 4])]
)
def test_what_lies_beyond_the_checkpoint_is_forgotten(make, trace, tmp_path, checkpoint, kept):
    """A block that begins at the checkpoint was rolled after it was saved."""
    environment = make(joint(trace, 12), BOTH, reroll=2, per_step=2)
    policy = Policy()
    for step in range(6):
        environment.rows(rows_of(environment, [2 * step + 1]), step, policy)
        environment.record.add(step + 1, [trace()])
        environment.record.flush()
    other = make(joint(trace, 12), BOTH, rank=1, reroll=2, per_step=2)
    other.forget_after(checkpoint)  # the first process alone deletes
    assert len(list(tmp_path.glob("upstream-*"))) == 3
    make(joint(trace, 12), BOTH, reroll=2, per_step=2).forget_after(checkpoint)
    assert [int(path.stem[-6:]) for path in sorted(tmp_path.glob("upstream-*"))] == kept
    assert len(list((tmp_path / "rollouts").iterdir())) == checkpoint


def test_only_the_first_process_keeps_the_block(make, trace, tmp_path):
    environment = make(joint(trace, 4), BOTH, rank=1, reroll=2, per_step=2)
    environment.rows(rows_of(environment, [1]), 0, Policy())
    assert environment.prompts[1].referral["specialty"] == "said-0"
    assert list(tmp_path.glob("upstream-*")) == []


# Rewards


def test_a_completion_is_graded_as_a_whole_consultation(make, trace):
    environment = make([trace(), trace(node="triage", specialty="Radiologist")], BOTH)
    texts = [RIGHT, WRONG, TORN, REFERRAL, RIGHT]
    rewards, _ = graded(environment, texts, [0, 0, 0, 1, 1])
    assert rewards == [1.5, 0.5, 0.0, 1.5, 0.5]
    assert [one.text for one in environment.batch] == texts
    assert [one.decided for one in environment.batch[:3]] == ["cyst", "scar", None]


def test_equal_completions_of_a_prompt_have_one_end(make, trace, graph):
    environment = make([trace(case="a"), trace(case="b")])
    texts = [RIGHT, WRONG, RIGHT, RIGHT, RIGHT, WRONG]
    rewards, _ = graded(environment, texts, [0, 0, 0, 1, 1, 1])
    assert sorted(graph.finished) == sorted((case, "attending", text) for case in "ab" for text in (RIGHT, WRONG))
    assert rewards == [1.5, 0.5, 1.5, 1.5, 1.5, 0.5]
    assert [one.case for one in environment.batch] == list("aaabbb")
    ends = {id(one) for one in environment.batch}
    assert len(ends) == len(texts)  # but each is a trace of its own, that gets tokens of its own


def test_a_rollout_says_when_and_by_which_policy_it_was_made(make, trace):
    environment = make([trace()])
    graded(environment, [RIGHT], step=36)
    assert (environment.batch[0].step, environment.batch[0].policy) == (37, "1-easy@36")


def test_what_cannot_be_graded_has_no_reward(make, trace):
    environment = make([trace(answer=None), trace()])
    rewards, logged = graded(environment, [RIGHT, RIGHT], [0, 1])
    assert rewards == [None, 1.5]
    assert logged["ungraded"] == 0.5
    assert environment.batch[0].ungraded == ["accuracy"]


def test_a_grader_sees_the_tokens_and_how_they_ended(make, trace):
    """Or a reward of the length would never be given."""
    seen = []

    def length(one):
        seen.append((one.completion_ids, one.finish))
        return -len(one.completion_ids)

    graders = Grading.parse(["overlong", "length=0.1"], {"length": length, "overlong": overlong_of(2)})
    environment = make([trace()], gradings={"attending": graders})
    rewards, _ = graded(environment, [RIGHT, WRONG, TORN])
    assert rewards == [pytest.approx(reward) for reward in (-0.1, -0.2, -1.3)]
    assert seen == [([7], "length"), ([7, 7], "length"), ([7, 7, 7], "length")]
    environment.ends = frozenset({7})
    graded(environment, [RIGHT])
    assert environment.batch[0].finish == "stop"


def test_an_error_of_the_graph_is_not_swallowed(make, trace, graph):
    async def broken(trace, text):
        raise ConnectionError("no doctor")

    graph.finish = broken
    with pytest.raises(ConnectionError, match="no doctor"):
        graded(make([trace()]), [RIGHT])


def test_the_figures_of_a_generation(make, trace, graph):
    graph.asked, graph.spared = 1, 3
    traces = [trace(tier="easy"), trace(tier="hard"), trace(node="triage", specialty="Radiologist")]
    environment = make(traces, BOTH)
    texts = [RIGHT, WRONG, RIGHT, TORN, REFERRAL, TORN]
    _, logged = graded(environment, texts, [0, 0, 1, 1, 2, 2])
    assert logged.pop("seconds/grade") >= 0
    assert logged == {
        "rewards/format": pytest.approx(4 / 6),
        "rewards/accuracy": 0.5,
        "accuracy/easy": 0.5,
        "accuracy/hard": 0.5,
        "rewards/specialty": 0.5,
        "ungraded": 0.0,
        "unparsed": 0.25,
        "unparsed/triage": 0.5,
        "cache_hits": 0.75,
    }
    graph.asked += 8
    assert graded(environment, texts, [0, 0, 1, 1, 2, 2])[1]["cache_hits"] == 0  # of this generation alone
    assert "cache_hits" not in graded(environment, texts, [0, 0, 1, 1, 2, 2])[1]  # nobody was to be asked


# What the trainer learns of a generation


def test_the_weights_of_a_generation_are_those_of_its_traces(make, trace):
    gammas = {"easy": 0.1, "medium": 0.2, "hard": 0.3, "triage": 0.4}
    environment = make([trace(tier="hard"), trace(node="triage", specialty="x")], BOTH, gammas=gammas)
    graded(environment, [RIGHT, WRONG, REFERRAL], [0, 0, 1])
    assert environment.gammas(0.0) == [0.3, 0.3, 0.4]


def test_a_generation_is_recorded_once_all_its_log_probabilities_are_there(make, trace, tmp_path):
    environment = make([trace()])
    graded(environment, [RIGHT, WRONG, TORN])
    for row in (2, 0):
        environment.scored(row, [-0.5, -0.25, -0.125, 9.0])
    environment.record.flush()
    assert list(tmp_path.glob("rollouts/*")) == []
    environment.scored(1, [-1.0, -2.0, 9.0])
    environment.record.flush()
    recorded = list(read_traces(tmp_path / "rollouts"))
    assert [one.text for one in recorded] == [RIGHT, WRONG, TORN]
    assert [one.logprobs for one in recorded] == [[-0.5], [-1.0, -2.0], [-0.5, -0.25, -0.125]]  # without the padding
    for row in range(3):  # learned from again
        environment.scored(row, [-7.0] * 3)
    environment.record.flush()
    assert list(read_traces(tmp_path / "rollouts")) == recorded


def test_generations_of_one_step_are_all_recorded(make, trace, tmp_path):
    """Several generations may belong to one optimizer step (gradient accumulation)."""
    environment = make([trace()])
    for text in (RIGHT, WRONG):
        graded(environment, [text], step=4)
        environment.scored(0, [-1.0])
    graded(environment, [TORN], step=5)
    environment.scored(0, [-1.0])
    environment.record.close(tmp_path / "rollouts.parquet")
    recorded = list(read_traces(tmp_path / "rollouts.parquet"))
    assert [(one.step, one.text) for one in recorded] == [(5, RIGHT), (5, WRONG), (6, TORN)]


def test_what_is_not_learned_from_any_more_is_recorded(make, trace, tmp_path):
    """A stage may end, or a generation follow, before every rollout has been learned from."""
    environment = make([trace()])
    graded(environment, [RIGHT, WRONG])
    environment.scored(0, [-1.0])
    graded(environment, [TORN], step=1)
    environment.scored(0, None)  # nobody measured it
    for _ in range(2):
        environment.flush()
    environment.record.close(tmp_path / "rollouts.parquet")
    recorded = list(read_traces(tmp_path / "rollouts.parquet"))
    assert [(one.text, one.logprobs) for one in recorded] == [(RIGHT, [-1.0]), (WRONG, None), (TORN, None)]


def test_a_stage_without_a_generation_records_nothing(make, trace, tmp_path):
    make([trace()]).flush()
    assert list(tmp_path.glob("rollouts/*")) == []


def test_kinds_of_prompts():
    assert Environment.kinds(None) == ["easy", "medium", "hard", "triage", "specialist"]
