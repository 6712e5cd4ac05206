"""The evaluation: all systems on the same cases, gone on with, compared in pairs."""

import io
import json
import zipfile

import pytest
from fakes import FakeModel, answers
from PIL import Image

from mmedagent_graph.hospital import HospitalFile, slug
from mmedagent_graph.prompts import SPECIALTIES
from rl.cohort import Cohort, measured
from rl.datasets import LabeledCase
from rl.evaluate import _systems, main, parser, short

OPTIONS = ["CT", "MRI", "PET"]
CASES = [
    LabeledCase(f"c{i}", f"Number {i}?", OPTIONS[i % 2], OPTIONS, groups={"modality": "odd" if i % 2 else "even"})
    for i in range(20)
]
YAML = """
systems:
  alone: {system: single, model: says-CT}
  full: {system: mmedagent, triage: triage, specialists: says-MRI, attending: says-MRI}
  even: {system: self_consistency, model: says-CT, match_tokens: full}
"""
PRICES = "says-CT: [1.0, 2.0]\nsays-MRI: [1.0, 2.0]\ntriage: [0, 0]\n"


class Named(FakeModel):
    """A fake that has a price."""

    model_name: str = ""


@pytest.fixture
def models(monkeypatch):
    known = {
        name: Named(answer=answers(said).answer, model_name=name, label=name)
        for name, said in (("says-CT", "CT"), ("says-MRI", "MRI"), ("triage", "Surgeon"))
    }
    monkeypatch.setattr("rl.systems.load_model", known.__getitem__)
    monkeypatch.setattr("rl.evaluate.measured", lambda *_: Cohort(CASES, 3))
    return known


@pytest.fixture
def flags(tmp_path, models):
    (tmp_path / "systems.yaml").write_text(YAML)
    (tmp_path / "prices.yaml").write_text(PRICES)
    return ["--systems", str(tmp_path / "systems.yaml"), "--out", str(tmp_path / "out")]


def asked(models):
    return sum(len(model.seen) for model in models.values())


def test_all_systems_are_measured_on_the_same_cases(flags, models, tmp_path, capsys):
    report = main(flags)
    told = report["results"]["clinic"]
    assert {name: row["accuracy"]["value"] for name, row in told.items()} == {"alone": 0.5, "full": 0.5, "even": 0.5}
    assert (told["alone"]["done"], told["alone"]["failed"], told["alone"]["left"]) == (20, 0, 0)
    # the reference's specialists, who say MRI, tell everybody's tiers
    assert report["reference"] == "full"
    assert told["alone"]["by"]["tier"]["hard"]["value"] == 1
    assert told["full"]["by"]["tier"]["easy"]["value"] == 1
    assert told["alone"]["by"]["modality"] == {
        name: pytest.approx(row) for name, row in told["even"]["by"]["modality"].items()
    }
    compared = told["alone"]["against_reference"]
    assert (compared["only_first"], compared["only_second"], compared["p"]) == (10, 10, 1.0)
    assert told["full"]["against_reference"] is None
    # five calls of ten tokens against one: five samples
    assert told["even"]["samples"] == 5
    assert told["even"]["cost"]["calls"] == told["full"]["cost"]["calls"] == 5
    about = {"source": "clinic", "split": None, "free_text": "skip", "limit": None}
    assert report["cases"]["clinic"] == {**about, "cases": 20, "skipped": 3}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    shown = capsys.readouterr().out
    assert "right to wrong" in shown
    assert "50.0 [" in shown


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """Two cases each of MedXpertQA-MM and OmniMedVQA, as they are published."""
    monkeypatch.setattr("rl.evaluate.measured", measured)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    expert, omni = tmp_path / "expert", tmp_path / "omni"
    rows = [
        {
            "id": f"MM-{number}",
            "question": f"What is number {number}?\nAnswer Choices: (A) CT (B) MRI",
            "options": {"A": "CT", "B": "MRI"},
            "label": "A",
            "images": [f"{number}.jpeg"],
            "medical_task": "Diagnosis",
            "body_system": system,
            "question_type": "Reasoning",
        }
        for number, system in enumerate(("Endocrine", "Nervous"))
    ]
    (expert / "MM").mkdir(parents=True)
    (expert / "MM" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with zipfile.ZipFile(expert / "images.zip", "w") as archive:
        for number in range(2):
            archive.writestr(f"images/{number}.jpeg", buffer.getvalue())
    rows = [
        {
            "dataset": "Scans",
            "question_id": f"scan_{number}",
            "question_type": "Modality Recognition",
            "question": f"How was number {number} made?",
            "gt_answer": "MRI",
            "image_path": "Images/Scans/a.png",
            "option_A": "CT",
            "option_B": "MRI",
            "modality_type": modality,
        }
        for number, modality in enumerate(("MR (Mag-netic Resonance Imaging)", "X-Ray"))
    ]
    omni.mkdir()
    with zipfile.ZipFile(omni / "OmniMedVQA.zip", "w") as archive:
        archive.writestr("OmniMedVQA/QA_information/Open-access/Scans.json", json.dumps(rows))
        archive.writestr("OmniMedVQA/Images/Scans/a.png", buffer.getvalue())
    return f"medxpertqa:{expert}", f"omnimedvqa:{omni}"


def test_accuracy_by_body_system_and_by_modality(flags, benchmarks):
    results = main([*flags, "--cases", *benchmarks])["results"]
    expert, omni = (results[name]["alone"]["by"] for name in ("medxpertqa", "omnimedvqa"))
    assert {name: (row["n"], row["value"]) for name, row in expert["body_system"].items()} == {
        "Endocrine": (1, 1.0),
        "Nervous": (1, 1.0),
    }
    assert expert["modality"] == omni["body_system"] == {}
    assert {name: (row["n"], row["value"]) for name, row in omni["modality"].items()} == {
        "MR (Mag-netic Resonance Imaging)": (1, 0.0),
        "X-Ray": (1, 0.0),
    }


def test_the_same_command_goes_on_and_asks_nobody_again(flags, models):
    first = main(flags)
    before = asked(models)
    assert main(flags) == first
    assert asked(models) == before


def test_shards_add_up_to_the_whole(flags, models, tmp_path):
    whole = main(["--out", str(tmp_path / "whole"), *flags[:2]])
    systems = tmp_path / "two.yaml"
    systems.write_text("\n".join(line for line in YAML.splitlines() if "even" not in line))
    parts = ["--systems", str(systems), "--out", str(tmp_path / "parts")]
    main([*parts, "--shard", "0/2"])
    told = main([*parts, "--shard", "1/2"])["results"]["clinic"]
    for name, row in told.items():
        expected = whole["results"]["clinic"][name]
        assert row["accuracy"] == expected["accuracy"]
        assert row["by"] == expected["by"]
        assert row["attending"] == expected["attending"]


def test_a_match_of_tokens_waits_for_all_shards(flags, capsys):
    told = main([*flags, "--shard", "0/2"])["results"]["clinic"]
    assert told["even"]["left"] == 20
    assert told["full"]["left"] == 20 - told["full"]["done"] > 0  # those of the other shard
    assert "even must know what full costs on all cases" in capsys.readouterr().out
    main([*flags, "--shard", "1/2"])
    told = main([*flags, "--shard", "0/2"])["results"]["clinic"]
    assert (told["even"]["samples"], told["even"]["accuracy"]["n"]) == (5, 20)


def test_other_settings_under_the_same_name_are_refused(flags, models, monkeypatch, tmp_path, capsys):
    weights = {"says-CT": "base"}
    monkeypatch.setattr(
        "rl.systems.Models.weights", lambda self, names: {name: weights.get(name) for name in {*names} & {*weights}}
    )
    main(flags)
    before = asked(models)
    systems = tmp_path / "systems.yaml"
    for text, wrong in (
        (YAML.replace("single, model: says-CT", "single, model: says-MRI"), "system, weights"),
        (YAML, "weights"),
        (YAML, "seed"),
    ):
        systems.write_text(text)
        weights["says-CT"] = "trained" if wrong == "weights" else "base"
        with pytest.raises(SystemExit):
            main([*flags, "--seed", "7"] if wrong == "seed" else flags)
        assert f"alone was made with another {wrong};" in capsys.readouterr().err
    systems.write_text(YAML.replace("self_consistency, model: says-CT", "self_consistency, model: says-MRI"))
    with pytest.raises(SystemExit):
        main(flags)
    assert "was made with another system, weights;" in capsys.readouterr().err
    assert asked(models) == before


def test_figures_are_of_the_cases_that_are_asked_for(flags):
    main(flags)
    few = main([*flags, "--limit", "5"])
    for row in few["results"]["clinic"].values():
        assert (row["done"], row["accuracy"]["n"]) == (5, 5)
    assert few["results"]["clinic"]["even"]["samples"] == 5


def test_what_is_wrong_is_told_before_anybody_is_asked(flags, models, monkeypatch, tmp_path, capsys):
    def cases(name, *_):
        if name == "vqa_rad":
            raise ValueError("cases: vqa_rad is away")
        return Cohort(CASES, 0)

    monkeypatch.setattr("rl.evaluate.measured", cases)
    unpriced = tmp_path / "unpriced.yaml"
    unpriced.write_text("says-CT: [1.0, 2.0]\ntriage: [0, 0]\n")
    for more, said in (
        (["--cases", "clinic", "vqa_rad"], "vqa_rad is away"),
        (["--max_dollars", "1", "--prices", str(unpriced)], "the price of says-MRI is not in --prices"),
    ):
        with pytest.raises(SystemExit):
            main([*flags, *more])
        assert said in capsys.readouterr().err
    assert asked(models) == 0


def test_what_is_measured_is_kept_though_something_else_fails(flags, models, monkeypatch, tmp_path):
    others = [LabeledCase(f"other-{i}", "What?", "CT", OPTIONS) for i in range(3)]
    monkeypatch.setattr("rl.evaluate.measured", lambda name, *_: Cohort(CASES if name == "clinic" else others, 0))

    def breaks(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rl.evaluate.print_results", lambda title, _: breaks() if title == "slake" else None)
    with pytest.raises(KeyboardInterrupt):
        main([*flags, "--cases", "clinic", "slake"])
    assert list(json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]) == ["clinic"]


def test_a_case_that_always_fails_does_not_hold_up_a_match_of_tokens(flags, models, capsys):
    def answer(messages):
        if "Number 7?" in messages[-1].text:
            raise RuntimeError("refused")
        return "<answer>MRI</answer>"

    models["says-MRI"].answer = answer
    told = main([*flags, "--retries", "0"])["results"]["clinic"]
    assert told["full"]["failed"] == 1
    assert (told["even"]["samples"], told["even"]["done"]) == (5, 20)


def test_a_model_that_tells_no_tokens_cannot_be_matched(flags, models, monkeypatch, capsys):
    monkeypatch.setattr("rl.contest._tokens", lambda trace: 0)
    with pytest.raises(SystemExit):
        main(flags)
    assert "match_tokens: says-CT does not tell how many tokens" in capsys.readouterr().err


def test_money_ends_it_and_more_goes_on(flags, models, tmp_path, capsys):
    priced = [*flags, "--prices", str(tmp_path / "prices.yaml"), "--concurrency", "1"]
    one = (7 * 1.0 + 3 * 2.0) / 1e6
    told = main([*priced, "--max_dollars", str(10 * one)])["results"]["clinic"]
    assert (told["alone"]["done"], told["alone"]["left"], told["full"]["left"]) == (10, 10, 20)
    assert "a larger --max_dollars goes on" in capsys.readouterr().out
    told = main([*priced, "--max_dollars", "1"])["results"]["clinic"]
    assert told["alone"]["left"] == told["full"]["left"] == told["even"]["left"] == 0
    assert told["full"]["cost"]["dollars"] == pytest.approx(4 * one)


def test_one_consultation_by_flags(models, monkeypatch, capsys):
    monkeypatch.setattr("rl.systems.load_model", lambda name: models["says-MRI"])
    report = main(["--model", "vllm:m", "--specialists", "vllm:a", "vllm:b", "--votes", "3"])
    assert report["systems"] == {
        "mmedagent": {
            "system": "mmedagent",
            "triage": "clinic:base",
            "specialists": ["vllm:a", "vllm:b"],
            "attending": "vllm:m",
            "votes": 3,
        }
    }
    assert report["results"]["clinic"]["mmedagent"]["confidence"]["n"] == 20


@pytest.mark.parametrize("cases", [["clinic"], ["faint"], ["faint", "clinic"]])
def test_the_clinics_cases_are_seen_by_its_doctors(cases):
    system = _systems(parser().parse_args(["--model", "vllm:m", "--cases", *cases]))["mmedagent"]
    assert system.specialists == ["clinic:doctor-1", "clinic:doctor-2", "clinic:doctor-3"]


def test_a_hospital_gives_the_specialists(tmp_path):
    """As in training: triage and the attending are those that are named, whoever the hospital has."""
    nobody = dict.fromkeys(SPECIALTIES)
    file = HospitalFile(base="clinic:base", triage=None, attending=None, specialists=nobody)
    (tmp_path / "hospital.json").write_text(file.model_dump_json())
    system = _systems(parser().parse_args(["--model", "vllm:m", "--specialists", str(tmp_path)]))["mmedagent"]
    who = system.doctors_named
    assert (who["triage"], who["attending"]) == ("clinic:base", "vllm:m")
    assert who["specialists"] == {name: f"hospital:{tmp_path}#{slug(name)}" for name in SPECIALTIES}


def test_failed_cases_are_told(flags, models, tmp_path, capsys):
    def breaks(_):
        raise RuntimeError("away")

    models["says-CT"].answer = breaks
    assert main([*flags, "--retries", "0"])["results"]["clinic"]["even"]["left"] == 20  # nobody knows what one costs
    systems = tmp_path / "one.yaml"
    systems.write_text("systems: {alone: {system: single, model: says-CT}}")
    told = main(["--systems", str(systems), *flags[2:], "--retries", "0"])["results"]["clinic"]["alone"]
    assert (told["failed"], told["accuracy"]["value"]) == (20, None)
    assert told["failed_cases"]["c3"] == "RuntimeError: away"
    assert "20 cases of alone failed, c0" in capsys.readouterr().out


REFUSED = {
    "nobody": (["--cases", "clinic"], "systems: give either --systems FILE.yaml, or --model"),
    "both": (["--model", "m", "--systems", "x.yaml"], "systems: give either"),
    "unknown reference": (
        ["--model", "vllm:m", "--reference", "full"],
        "reference: no system 'full'; choose one of mmedagent",
    ),
    "no prices": (["--model", "vllm:m", "--max_dollars", "1"], "max_dollars: what calls cost is not known"),
    "cases twice": (["--model", "vllm:m", "--cases", "slake", "slake:/data"], "cases: slake is named twice"),
    "no shard": (["--model", "vllm:m", "--shard", "2/2"], "--shard"),
}


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(models, given, said, capsys):
    with pytest.raises(SystemExit):
        main(given)
    assert said in capsys.readouterr().err


def test_prices_are_two_numbers(flags, tmp_path, capsys):
    (tmp_path / "prices.yaml").write_text("m: 3\n")
    with pytest.raises(SystemExit):
        main([*flags, "--prices", str(tmp_path / "prices.yaml")])
    assert "`MODEL: [1.5, 6.0]`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cases", "name"), [("slake:/data/SLAKE", "slake"), ("/a b/my cases.jsonl", "my_cases"), ("clinic", "clinic")]
)
def test_what_cases_are_called(cases, name):
    assert short(cases) == name
