"""Each warning comes when it should, once, says what can be done, and never on a healthy log."""

import json
from types import SimpleNamespace

import pytest

from rl.watch import SHOWN, WINDOW, StageProgress, Warnings

HEALTHY = {
    "loss": 0.01,
    "reward": 1.2,
    "entropy": 0.3,
    "no_variance": 0.6,
    "no_variance/easy": 0.9,
    "no_variance/hard": 0.3,
    "completions/clipped_ratio": 0.01,
    "unparsed": 0.02,
    "ungraded": 0.0,
    "image_effect": 0.8,
}


def warned(*logs):
    """After how many logs which warning came."""
    watch = Warnings("2-medium")
    return [(i, text) for i, log in enumerate(logs, 1) for text in watch.look(log)]


def sick(n=3 * WINDOW, healthy=0, **fields):
    return [HEALTHY] * healthy + [{**HEALTHY, **fields}] * n


def test_nothing_is_said_of_a_healthy_stage():
    assert warned(*[HEALTHY] * 100) == []


def test_nothing_is_said_of_a_log_that_tells_nothing():
    assert warned(*[{"loss": 1.0}] * 100) == []  # supervised fine-tuning
    assert warned(*[dict.fromkeys(HEALTHY)] * 100) == []  # TRL logs None where it has nothing to average


WARNED = {
    "no variance": ({"no_variance": 0.95}, WINDOW, ["95%", "easy 90%, hard 30%", "--temperature"]),
    "cut": ({"completions/clipped_ratio": 0.4}, 1, ["40%", "--max_completion_length"]),
    "unread": ({"unparsed": 0.7}, 1, ["70%", "rl.train_sft"]),
    "ungraded": ({"ungraded": 0.1}, 1, ["10%", "`rewards`"]),
    "images": ({"image_effect": 1e-6}, 1, ["1.0e-06 nats", "Are they in the prompt"]),
}


@pytest.mark.parametrize(("fields", "after", "words"), WARNED.values(), ids=WARNED.keys())
def test_a_warning_comes_once_with_what_can_be_done(fields, after, words):
    ((when, text),) = warned(*sick(**fields))
    assert when == after
    assert text.startswith("2-medium: ")
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"no_variance": 0.899},
        {"completions/clipped_ratio": 0.199},
        {"unparsed": 0.499},
        {"ungraded": 0.0},
        {"image_effect": 1.001e-4},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_within_the_limits_nothing_is_said(fields):
    assert warned(*[{**HEALTHY, **fields}] * (3 * WINDOW)) == []


def test_a_single_bad_step_is_none_of_its_business():
    """Averages over the window decide, where it has been healthy before."""
    for fields, _, _ in list(WARNED.values())[:3]:
        assert warned(*sick(1, healthy=WINDOW, **fields), *[HEALTHY] * WINDOW) == []


def test_what_goes_wrong_later_is_seen_in_time():
    for fields, _, _ in WARNED.values():
        ((when, _),) = warned(*sick(healthy=50, **fields))
        assert 50 < when <= 50 + WINDOW + 1


def entropies(*values):
    return [{**HEALTHY, "entropy": value} for value in values]


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (0.002, ["has fallen from 0.300 to 0.00", "--gammas", "--epsilon_high"]),
        (2.0, ["has risen from 0.300", "--betas"]),
    ],
    ids=["collapse", "explosion"],
)
def test_entropy_that_collapses_or_explodes(later, words):
    ((when, text),) = warned(*entropies(*[0.3] * 30, *[later] * 60))
    assert 30 < when <= 30 + WINDOW
    assert [word for word in words if word not in text] == []


def test_entropy_is_judged_by_where_the_stage_began_and_by_its_size():
    assert warned(*entropies(*[0.3] * 5, *[0.04] * 60)) == []  # low, but there is some
    assert warned(*entropies(*[0.004] * 5, *[0.003] * 60)) == []  # it began so
    assert warned(*entropies(*[0.01] * 5, *[0.2] * 60)) == []  # much more than before, and still little
    assert warned(*entropies(*[0.9] * 5, *[2.0] * 60)) == []  # much, and so it began
    assert warned(*entropies(*[0.0] * 60)) == []  # nothing to compare with


def test_two_things_may_go_wrong_at_once():
    texts = [text for _, text in warned(*sick(**{"unparsed": 0.9, "completions/clipped_ratio": 0.9}))]
    assert len(texts) == 2


class Bar:
    def __init__(self, **given):
        self.given, self.shown, self.n, self.closed = given, None, 0, False

    def update(self):
        self.n += 1

    def set_postfix(self, shown):
        self.shown = shown

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    """The bars that were opened, and what was written above them."""
    bars, written = [], []

    def tqdm(**given):
        bars.append(Bar(**given))
        return bars[-1]

    tqdm.write = written.append
    monkeypatch.setattr("rl.watch.tqdm", tqdm)
    return SimpleNamespace(bars=bars, written=written)


def state(step=0, first=True, steps=10):
    return SimpleNamespace(is_world_process_zero=first, max_steps=steps, global_step=step, logging_steps=10)


@pytest.mark.parametrize(("steps", "after"), [(10, 1), (100, 2), (400, 10), (4000, 20)])
def test_a_short_stage_is_warned_of_while_it_can_be_helped(tmp_path, bars, steps, after):
    progress = StageProgress(tmp_path / "metrics.jsonl", "1-easy")
    progress.on_train_begin(None, state(steps=steps), None)
    for i in range(1, steps // 10 + 1):
        progress.on_log(None, state(10 * i, steps=steps), None, logs={**HEALTHY, "no_variance": 1.0})
    (warning,) = bars.written
    assert warning.startswith(f"warning: step {10 * after} of")


def test_a_resumed_stage_knows_what_was_logged(tmp_path, bars):
    """A warning is not repeated, and entropy is still judged by where the stage began."""
    path, steps = tmp_path / "metrics.jsonl", 100
    logged = [{**HEALTHY, "unparsed": 0.9}, {**HEALTHY, "entropy": 0.004}]
    path.write_text("".join(json.dumps({"stage": "1-easy", "step": 10, **log}) + "\n" for log in logged))
    progress = StageProgress(path, "1-easy")
    progress.on_train_begin(None, state(20, steps=steps), None)
    assert bars.written == []
    for step in (30, 40):
        progress.on_log(None, state(step, steps=steps), None, logs={**HEALTHY, "unparsed": 0.9, "entropy": 0.001})
    (warning,) = bars.written
    assert "has fallen from 0.300" in warning


def test_a_stage_is_watched(tmp_path, bars):
    path = tmp_path / "metrics.jsonl"
    progress = StageProgress(path, "2-medium")
    progress.on_train_begin(None, state(4), None)
    (bar,) = bars.bars
    assert (bar.given["total"], bar.given["initial"]) == (10, 4)  # a resumed one
    progress.on_step_end(None, state(5), None)
    progress.on_log(None, state(5), None, logs={**HEALTHY, "unparsed": 0.9, "rewards/accuracy": 0.5})
    progress.on_log(None, state(10), None, logs={"train_runtime": 3.0, "loss": 0.1})  # the trainer's farewell
    progress.on_log(None, state(10), None, logs=None)
    progress.on_train_end(None, state(10), None)
    assert (bar.n, bar.closed) == (1, True)
    assert bar.shown == {
        "reward": "1.200", "accuracy": "0.500", "entropy": "0.300", "unparsed": "0.900", "loss": "0.010"
    }  # fmt: skip
    assert set(bar.shown) <= set(SHOWN)
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {"stage": "2-medium", "step": 5, **HEALTHY, "unparsed": 0.9, "rewards/accuracy": 0.5}
    (warning,) = bars.written
    assert warning.startswith("warning: step 5 of stage 2-medium: 90% of the answers could not be read")


def test_the_first_process_alone_shows_and_writes(tmp_path, bars):
    progress = StageProgress(tmp_path / "metrics.jsonl", "2-medium")
    progress.on_train_begin(None, state(first=False), None)
    progress.on_step_end(None, state(first=False), None)
    progress.on_log(None, state(first=False), None, logs={**HEALTHY, "unparsed": 0.9})
    progress.on_train_end(None, state(first=False), None)
    assert (bars.bars, bars.written, list(tmp_path.iterdir())) == ([], [], [])
