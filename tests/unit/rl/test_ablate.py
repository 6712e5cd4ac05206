"""Ablations: which trainings a row needs, what each is told, and the table of their figures."""

import json
import subprocess
import threading

import pytest
import yaml

from rl import ablate, jobs
from rl.ablate import ROWS, TRAININGS, Ablation, main, markdown, summarize
from rl.recipe import Recipe
from rl.settings import parse
from rl.train_attending import COMMAND

TIERS = ("easy", "medium", "hard")


def figures(accuracy, n=100):
    figure = {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "n": n}
    return {"accuracy": figure, "by": {"tier": dict.fromkeys(TIERS, figure)}, "failed": 0, "left": 0}


FIGURES = figures


@pytest.fixture
def calls(monkeypatch):
    """What was started, which ends at once; the accuracy is by the system and the seed."""
    started, lock = [], threading.Lock()

    def run(command, **_):
        with lock:
            started.append(command)
        flags = command[3:]
        if command[2] == "rl.evaluate":
            seed = int(flags[flags.index("--seed") + 1])
            out = ablate.Path(flags[flags.index("--out") + 1])
            systems = yaml.safe_load((out / "systems.yaml").read_text())["systems"]
            told = {name: figures(0.5 + 0.01 * place + 0.001 * seed) for place, name in enumerate(systems)}
            (out / "evaluation.json").write_text(json.dumps({"results": {"clinic": told}}))
        else:
            folder = ablate.Path(flags[flags.index("--runs") + 1]) / flags[flags.index("--name") + 1]
            folder.mkdir(parents=True, exist_ok=True)
            if "--resume" not in flags:
                (folder / "arguments.json").write_text(json.dumps({"arguments": flags}))
            (folder / "summary.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(jobs.subprocess, "run", run)
    return started


def trained(calls):
    return [(command[command.index("--name") + 1], command) for command in calls if command[2] != "rl.evaluate"]


def test_all_rows_are_measured_with_their_own_trainings(calls, tmp_path, capsys):
    main(["--out", str(tmp_path / "out"), "--seeds", "0", "1"])
    names = [name for name, _ in trained(calls)]
    assert sorted(names) == sorted(f"{name}-seed{seed}" for name in TRAININGS for seed in (0, 1))
    systems = yaml.safe_load((tmp_path / "out" / "seed-1" / "systems.yaml").read_text())["systems"]
    model = f"{tmp_path}/out/trainings"
    assert systems["full"]["attending"] == f"transformers:{model}/curriculum-seed1/model"
    assert systems["full"]["triage"] == f"transformers:{model}/triage-seed1/model"
    assert systems["easy-only"]["attending"] == f"transformers:{model}/curriculum-seed1/stages/1-easy/model"
    assert systems["w-o-triage"]["triage"] == "random"
    assert systems["w-o-specialists"]["triage"] == "nobody"
    assert systems["untrained-attending"]["attending"] == "clinic:base"
    assert systems["9-votes"]["votes"] == 9
    assert all(
        system["specialists"] == ["clinic:doctor-1", "clinic:doctor-2", "clinic:doctor-3"]
        for system in systems.values()
    )
    shown = capsys.readouterr().out
    assert "| w/o curriculum RL: SFT on gold answers |" in shown
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"]) == len(ROWS)


def test_what_is_finished_is_not_trained_again(calls, tmp_path):
    flags = ["--out", str(tmp_path), "--seeds", "0", "--rows", "gamma off"]
    main(flags)
    before = len(trained(calls))
    assert before == 3  # triage, the full one, and without gamma
    main(flags)
    assert len(trained(calls)) == before


def test_what_was_broken_off_goes_on(calls, tmp_path):
    folder = tmp_path / "trainings" / "triage-seed0"
    flags = ["--out", str(tmp_path), "--seeds", "0", "--rows", "full"]
    main(flags)
    (folder / "summary.json").unlink()
    main(flags)
    runs = ["--runs", str(folder.parent), "--name", folder.name]
    assert trained(calls)[-1][1][3:] == [*runs, "--resume"]


def test_other_flags_are_refused(calls, tmp_path):
    flags = ["--out", str(tmp_path), "--seeds", "0", "--rows", "full"]
    main(flags)
    with pytest.raises(ValueError, match="curriculum-seed0 was made with other flags"):
        main([*flags, "--learning_rate", "1e-4"])


def test_flags_of_ones_own_go_to_the_attendings_trainings(calls, tmp_path):
    main(["--out", str(tmp_path), "--seeds", "0", "--rows", "SFT on gold answers", "--learning_rate", "1e-4"])
    told = {command[2]: command for _, command in trained(calls)}
    assert "--learning_rate" in told["rl.train_attending"]
    assert "--learning_rate" not in told["rl.train_triage"] + told["rl.train_sft"]


def test_cases_of_ones_own(calls, tmp_path, capsys):
    own = ["--cases", "slake", "--split", "train", "--eval_split", "validation", "--model", "Qwen/M"]
    own += ["--sft_config", "rl/configs/clinic_sft.yaml"]
    main(["--out", str(tmp_path), "--seeds", "0", "--rows", "full", "SFT on gold answers", *own])
    for name, command in trained(calls):
        assert ("--config" in command) is (name == "sft-seed0")
        assert "--train_size" not in command
        assert command[command.index("--eval_split") + 1] == "validation"
        assert command[command.index("--model") + 1] == "Qwen/M"
    systems = yaml.safe_load((tmp_path / "seed-0" / "systems.yaml").read_text())["systems"]
    assert systems["full"]["specialists"] == ["transformers:Qwen/M"] * 3
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--cases", "slake"])
    assert "need --split and --eval_split" in capsys.readouterr().err


def test_a_triage_of_ones_own_is_not_trained(calls, tmp_path):
    main(["--out", str(tmp_path), "--seeds", "0", "--rows", "full", "--triage", "vllm:M"])
    ((name, command),) = trained(calls)
    assert name == "curriculum-seed0"
    assert command[command.index("--triage") + 1] == "vllm:M"
    systems = yaml.safe_load((tmp_path / "seed-0" / "systems.yaml").read_text())["systems"]
    assert systems["full"]["triage"] == "vllm:M"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning_rat", "1e-4"], "learning_rat"),
        (["--stage_steps", "1", "2"], "stage_steps"),
        (["--specialists", "clinic:base"], "the clinic has its own"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_trained(calls, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *flags])
    assert said in capsys.readouterr().err
    assert not calls


def test_a_failed_training_ends_it(monkeypatch, tmp_path):
    def fails(command, **_):
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(jobs.subprocess, "run", fails)
    with pytest.raises(RuntimeError, match=r"rl\.train_triage failed with 1; .*triage-seed0\.log says why"):
        main(["--out", str(tmp_path), "--seeds", "0"])


def test_every_attendings_training_is_a_recipe_that_is_taken(tmp_path):
    for name, training in TRAININGS.items():
        if training.module == "rl.train_attending":
            ablation = Ablation(ROWS, _given(tmp_path), [])
            recipe: Recipe = parse(COMMAND, ablation._flags(name)).recipe
            assert len(recipe.curriculum(-1)) == 3


def _given(out):
    return ablate.argparse.Namespace(out=out, cases="clinic", model=None, jobs=1, triage=None, sft_config=None)


def test_the_other_order_has_each_tiers_own_steps_and_shares(tmp_path):
    stages = {}
    for name in ("curriculum", "reversed"):
        ablation = Ablation(ROWS, _given(tmp_path), ["--betas", "0.3", "0.2", "0.1"])
        recipe = parse(COMMAND, ablation._flags(name)).recipe
        stages[name] = {
            stage.name.partition("-")[2]: (stage.steps, stage.shares, beta)
            for stage, beta in zip(recipe.curriculum(-1), recipe.betas, strict=True)
        }
    assert stages["curriculum"] == stages["reversed"]
    assert list(stages["reversed"]) == ["hard", "medium", "easy"]


def test_the_table_by_hand():
    rows = [ROWS[0], ROWS[1]]
    measured = [
        {rows[0].slug: figures(0.80), rows[1].slug: figures(0.70)},
        {rows[0].slug: figures(0.90), rows[1].slug: figures(0.76)},
    ]
    full, other = summarize(rows, measured)
    assert full["accuracy"].value == pytest.approx(85)
    # of two seeds: t = 12.706, half of the difference 5 each: 12.706 * (10 / sqrt 2) / sqrt 2
    assert full["accuracy"].high - full["accuracy"].value == pytest.approx(12.706 * 5, rel=1e-3)
    assert other["difference"].value == pytest.approx(-12)
    assert other["difference"].high - other["difference"].value == pytest.approx(12.706 * 2, rel=1e-3)
    lines = markdown([full, other]).splitlines()
    assert lines[0] == "|  | accuracy | easy | medium | hard | against full |"
    assert lines[2].startswith("| full | 85.0 ± 63.5 |")
    assert lines[3].endswith("| -12.0 ± 25.4 |")


def test_a_tier_that_no_case_is_of_has_no_figure():
    told = figures(0.5)
    del told["by"]["tier"]["hard"]
    (full,) = summarize(ROWS[:1], [{ROWS[0].slug: told}] * 2)
    assert (full["hard"].value, full["easy"].value) == (None, 50.0)
    assert markdown([full]).splitlines()[2] == "| full | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | - |  |"


def test_figures_of_fewer_cases_are_no_figures(calls, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "figures", lambda accuracy: {**FIGURES(accuracy), "failed": 2, "left": 1})
    with pytest.raises(RuntimeError, match=r"seed 0: cases without a result: full \(3\); the same command"):
        main(["--out", str(tmp_path), "--seeds", "0", "--rows", "full"])
