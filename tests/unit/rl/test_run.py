"""A run's folder: written before it starts, never taken twice, resumed with its own settings only."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from rl import train_sft, train_triage
from rl.recipe import stage_settings
from rl.run import Run
from rl.settings import flags_of
from rl.train_attending import COMMAND


@pytest.fixture
def open_run(tmp_path):
    return lambda *flags, command=COMMAND: Run.open(command, ["--runs", str(tmp_path / "runs"), *flags])


def test_a_new_run_writes_its_arguments(open_run, tmp_path):
    run = open_run("--name", "a", "--seed", "3")
    assert run.folder == tmp_path / "runs" / "a"
    assert run.seconds == {}
    written = json.loads((run.folder / "arguments.json").read_text())
    given = ["--runs", str(tmp_path / "runs"), "--name", "a", "--seed", "3"]
    assert (run.told.recipe, run.told.arguments) == ("clinic", given)
    assert written == dataclasses.asdict(run.told)
    assert (written["command"], written["processes"], written["launch"]) == ("rl.train_attending", 1, None)
    assert run.flags == written["flags"] == [*flags_of(COMMAND, []), *given]


def test_a_run_without_a_name_is_named_by_recipe_and_seed(open_run):
    assert [open_run("--seed", "4").folder.name for _ in range(3)] == [
        "clinic-seed4",
        "clinic-seed4-2",
        "clinic-seed4-3",
    ]


def test_each_command_names_its_runs(open_run):
    assert open_run(command=train_triage.COMMAND).folder.name == "clinic_triage-seed0"
    assert open_run(command=train_sft.COMMAND).folder.name == "clinic_sft-seed0"


def test_the_latest_run_cannot_be_anothers_name(open_run, tmp_path):
    with pytest.raises(ValueError, match="name: 'latest' always points to the last run"):
        open_run("--name", "latest")
    assert not (tmp_path / "runs").exists()


def test_a_run_is_gone_on_with_by_its_own_command(open_run):
    run = open_run("--name", "a", command=train_triage.COMMAND)
    assert run.go_on() == f"python -m rl.train_triage --resume --runs {run.folder.parent} --name a"
    with pytest.raises(ValueError, match=r"resume: .*runs/a' is a run of rl\.train_triage"):
        open_run("--resume", "--name", "a")
    assert open_run("--resume", "--name", "a", command=train_triage.COMMAND).folder == run.folder


def test_a_taken_name_is_refused(open_run):
    first = open_run("--name", "a", "--seed", "1")
    with pytest.raises(ValueError, match=r"name: .*runs/a' holds a run.*--resume --name a"):
        open_run("--name", "a")
    assert "--seed" in json.loads((first.folder / "arguments.json").read_text())["arguments"]


def test_a_resumed_run_keeps_its_arguments(open_run):
    first = open_run("--name", "a", "--seed", "3")
    open_run("--name", "b")
    resumed = open_run("--resume", "--name", "a")
    assert resumed.folder == first.folder.resolve()
    assert resumed.told == first.told
    assert resumed.settings.trainer.seed == 3


OWN = """
seed: 7
learning_rate: 0.5
use_cpu: false
bf16: false
train_size: 50
stages: [easy, hard]
stage_steps: [3, 4]
betas: [0.01, 0]
rehearsal: [0]
"""


@pytest.fixture
def own(tmp_path):
    """A recipe of one's own, which is not the command's."""
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("change", [lambda path: path.write_text("learning_rate: 9\n"), lambda path: path.unlink()])
def test_a_resumed_run_keeps_its_recipe_whatever_becomes_of_the_file(open_run, own, tmp_path, change):
    first = open_run("--name", "a", "--config", str(own), "--stage_steps", "5", "6")
    change(own)
    resumed = open_run("--resume", "--name", "a")
    for run in (first, resumed):
        recipe, trainer, _ = run.settings
        assert (trainer.seed, trainer.learning_rate, recipe.stages) == (7, 0.5, ["easy", "hard"])
        stage = stage_settings(run.command, run.flags, recipe.curriculum(0)[1], tmp_path)
        assert (stage.learning_rate, stage.beta, stage.max_steps, stage.use_cpu) == (0.5, 0.0, 6, False)
    assert resumed.told.recipe == "own"


def test_a_resumed_run_reads_no_settings_but_its_own(open_run, own):
    """TRL's settings start the processes' group: those of another recipe, for CPUs, would start it for CPUs."""
    read = []

    class Settings(COMMAND.trainer):
        def __post_init__(self):
            read.append(self.use_cpu)
            super().__post_init__()

    command = COMMAND._replace(trainer=Settings)
    open_run("--name", "a", "--config", str(own), command=command)
    read.clear()
    open_run("--resume", "--name", "a", command=command)
    assert read == [False]


@pytest.mark.parametrize("form", [["--resume", "true"], ["--resume=true"]])
def test_resuming_may_be_asked_for_in_every_form(open_run, form):
    first = open_run("--name", "a")
    assert open_run(*form, "--name", "a").folder == first.folder.resolve()


def test_a_recipe_cannot_ask_to_be_resumed(open_run, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("use_cpu: true\nresume: true\n")
    with pytest.raises(ValueError, match=r"resume: true in a recipe.*--resume"):
        open_run("--config", str(config))


def test_a_run_of_several_processes_is_resumed_by_as_many(open_run, monkeypatch):
    monkeypatch.setattr("rl.run.processes", lambda: 2)
    run = open_run("--name", "a")
    line = "accelerate launch --multi_gpu --num_processes 2 -m rl.train_attending --resume"
    assert run.go_on() == f"{line} --runs {run.folder.parent} --name a"
    assert open_run("--resume", "--name", "a").told == run.told
    monkeypatch.setattr("rl.run.processes", lambda: 1)
    with pytest.raises(ValueError, match=f"resume: .*runs/a' is a run of 2 processes, and there is 1; .*{line}"):
        open_run("--resume", "--name", "a")


def test_a_recipe_without_its_launcher_leaves_nothing(open_run, own, tmp_path, monkeypatch):
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n")
    flags = ["--name", "a", "--config", str(own), "--accelerate", "two.yaml"]
    line = f"accelerate launch --config_file {tmp_path / 'two.yaml'} -m rl.train_attending"
    with pytest.raises(ValueError, match=f"accelerate: .*two.yaml is for 2 processes, and there is 1.*{line}"):
        open_run(*flags)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr("rl.run.processes", lambda: 2)
    assert open_run(*flags).go_on().startswith(f"{line} --resume")


def test_what_latest_stood_for_is_what_a_run_is_given(open_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_run("--name", "a").acceptance():
        (tmp_path / "runs" / "a" / "model").mkdir()
    latest = "runs/latest/model"
    others = ["--specialists", "vllm:x", f"transformers:{latest}", "--judge", f"transformers:{latest}"]
    others += ["--graders", "judge"]
    given = open_run("--name", "b", "--triage", f"clinic:{latest}", "--model", latest, *others)
    with given.acceptance():
        pass
    assert (tmp_path / "runs" / "latest").resolve().name == "b"
    model = str(tmp_path / "runs" / "a" / "model")
    for run in (given, open_run("--resume", "--name", "b")):
        recipe = run.settings.recipe
        assert (recipe.model, recipe.triage) == (model, f"clinic:{model}")
        assert (recipe.specialists, recipe.judge) == (["vllm:x", f"transformers:{model}"], f"transformers:{model}")


def test_the_latest_run_is_resumed_by_default(open_run):
    for name in ("a", "b"):
        last = open_run("--name", name)
        with last.acceptance():
            pass
    assert open_run("--resume").folder == last.folder.resolve()


@pytest.mark.parametrize("other", [("--seed", "4"), ("--learning_rate=0.1",), ("--train_size", "5")])
def test_a_resumed_run_takes_no_other_settings(open_run, other):
    open_run("--name", "a")
    with pytest.raises(ValueError, match=f"resume: .*leave out {other[0].partition('=')[0]}$"):
        open_run("--resume", "--name", "a", *other)


def test_resuming_an_unknown_run_lists_the_runs(open_run):
    with pytest.raises(ValueError, match=r"resume: no run in .*runs there are none"):
        open_run("--resume")
    open_run("--name", "a")
    open_run("--name", "b")
    with pytest.raises(ValueError, match=r"resume: no run in '.*/c'; runs there are a, b"):
        open_run("--resume", "--name", "c")


def test_latest_points_at_the_last_run_wherever_the_folder_goes(open_run, tmp_path):
    for name in ("a", "b"):
        with open_run("--name", name).acceptance():
            pass
        assert (tmp_path / "runs" / "latest").resolve().name == name
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert (moved / "latest" / "arguments.json").is_file()
    assert sorted(path.name for path in moved.iterdir()) == ["a", "b", "latest"]


def test_a_run_that_cannot_work_leaves_no_folder(open_run, tmp_path):
    with pytest.raises(ValueError, match="stages"):
        open_run("--name", "a", "--stages", "hardest")
    assert not (tmp_path / "runs").exists()


def test_seconds_of_a_phase_add_up_over_an_interruption(open_run, monkeypatch):
    now = iter([0.0, 2.5, 10.0, 11.0, 20.0, 24.5])
    monkeypatch.setattr("rl.run.time", SimpleNamespace(monotonic=lambda: next(now)))
    run = open_run("--name", "a")
    with pytest.raises(KeyboardInterrupt), run.phase("rollout"):
        raise KeyboardInterrupt
    resumed = open_run("--resume", "--name", "a")
    assert resumed.seconds == {"rollout": 2.5}
    with resumed.phase("cases"):
        pass
    with resumed.phase("rollout"):
        pass
    assert resumed.seconds == {"rollout": 7.0, "cases": 1.0}
    assert json.loads((run.folder / "seconds.json").read_text()) == resumed.seconds


def test_a_link_stands_for_a_folder_of_the_run(open_run):
    run = open_run("--name", "a")
    for stage in ("1-easy", "2-medium"):
        model = run.folder / "stages" / stage / "model"
        model.mkdir(parents=True)
        run.link("model", str(model))
        assert (run.folder / "model").resolve() == model.resolve()
    assert not (run.folder / "model").readlink().is_absolute()


def test_metrics_of_the_stages_come_one_after_the_other(open_run):
    run = open_run("--name", "a")
    for stage in ("1-easy", "3-hard"):
        folder = run.folder / "stages" / stage
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(f'"{stage}"\n')
    run.collect_metrics(["1-easy", "2-medium", "3-hard"])
    assert (run.folder / "metrics.jsonl").read_text() == '"1-easy"\n"3-hard"\n'


def test_the_summary_is_written(open_run):
    run = open_run("--name", "a")
    run.finish({"seed": 3})
    assert json.loads((run.folder / "summary.json").read_text()) == {"seed": 3}


def test_what_was_found_once_is_read_the_next_time(open_run):
    run = open_run("--name", "a")
    assert run.once("ideal.json", lambda: {"n": 1}) == {"n": 1}
    assert open_run("--resume", "--name", "a").once("ideal.json", lambda: pytest.fail("made again")) == {"n": 1}
    assert run.once("none.json", lambda: None) is None
    with pytest.raises(KeyboardInterrupt):
        run.once("other.json", interrupted)
    assert run.once("other.json", lambda: 2) == 2


def test_only_the_first_process_writes(open_run):
    """The others find the same, and touch nothing."""
    run = open_run("--name", "a")
    run.main = False
    assert run.once("ideal.json", lambda: 1) == 1
    with run.phase("cases"):
        pass
    run.link("model", str(run.folder))
    with pytest.raises(ValueError, match="split"), run.acceptance():
        refused()
    assert [path.name for path in run.folder.iterdir()] == ["arguments.json"]


def interrupted():
    raise KeyboardInterrupt


def refused():
    raise ValueError("split: no")


@pytest.mark.parametrize(
    ("stop", "error", "kept"), [(refused, ValueError, False), (interrupted, KeyboardInterrupt, True)]
)
def test_a_name_is_free_again_after_a_refusal(open_run, stop, error, kept):
    run = open_run("--name", "a")
    with pytest.raises(error), run.phase("cases"), run.acceptance():
        stop()
    assert run.folder.exists() is kept
    if not kept:
        assert open_run("--name", "a").seconds == {}


def test_a_refused_run_is_not_the_latest(open_run, tmp_path):
    with open_run("--name", "a").acceptance():
        pass
    with pytest.raises(ValueError, match="split"), open_run("--name", "b").acceptance():
        refused()
    assert (tmp_path / "runs" / "latest").resolve().name == "a"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "latest"]


def test_a_refusal_removes_nothing_of_a_run_that_goes_on(open_run):
    """Its cases may have been away for a moment."""
    open_run("--name", "a")
    run = open_run("--resume", "--name", "a")
    with pytest.raises(ValueError, match="split"), run.acceptance():
        refused()
    assert open_run("--resume", "--name", "a").told == run.told


def test_a_refusal_removes_nothing_that_was_there_before(open_run, tmp_path):
    notes = tmp_path / "runs" / "a" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(ValueError, match="split"), open_run("--name", "a").acceptance():
        refused()
    assert notes.exists()
