"""Systems from YAML: what each kind takes and needs, and the graphs they become."""

import asyncio
import shutil

import pytest
from fakes import QUESTION, FakeModel, answers, refers

from rl.datasets import LabeledCase
from rl.models import BASE, contents
from rl.systems import TAKES, Models, System, read_systems

PANEL = "triage: t, specialists: s"


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "systems.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def models(monkeypatch):
    """Every model there is."""
    known = {"t": refers("Surgeon"), "s": answers("CT"), "a": answers("MRI"), "m": answers("PET")}
    monkeypatch.setattr("rl.systems.load_model", known.__getitem__)
    return known


CASES = [
    LabeledCase("a", QUESTION["question"], "CT", QUESTION["options"], specialty="Radiologist"),
    LabeledCase("b", "Another?", "CT", QUESTION["options"], specialty="Dermatologist"),
]


def built(images, samples=None, **fields):
    return System(**fields).build(CASES, images, Models(), samples)


def asked(graph, question=QUESTION["question"]):
    return asyncio.run(graph.ainvoke({**QUESTION, "question": question}))


@pytest.mark.parametrize(
    ("fields", "answer", "calls"),
    [
        ({"system": "mmedagent", "triage": "t", "specialists": "s", "attending": "a"}, "MRI", 5),
        ({"system": "mmedagent", "triage": "t", "specialists": "s", "attending": "a", "doctors": 2}, "MRI", 4),
        ({"system": "mmedagent", "triage": "t", "specialists": ["s", "m"], "attending": "a", "votes": 3}, "MRI", 6),
        ({"system": "single", "model": "m"}, "PET", 1),
        ({"system": "self_consistency", "model": "m", "samples": 4}, "PET", 4),
        ({"system": "majority_vote", "triage": "t", "specialists": ["s", "m", "s"]}, "CT", 4),
        ({"system": "one_specialist", "triage": "t", "specialists": "s"}, "CT", 2),
        ({"system": "all_specialties", "specialists": "s", "attending": "a"}, "MRI", 8),
        ({"system": "mmedagent", "triage": "random:3", "specialists": "s", "attending": "a"}, "MRI", 4),
        ({"system": "mmedagent", "triage": "label", "specialists": "s", "attending": "a"}, "MRI", 4),
        ({"system": "mmedagent", "triage": "nobody", "specialists": "s", "attending": "a"}, "MRI", 1),
    ],
)
def test_a_system_is_its_graph(models, images, fields, answer, calls):
    result = asked(built(images, **fields))
    assert result["decision"]["answer"] == answer
    assert sum(spent["calls"] for spent in result["usage"].values()) == calls


@pytest.mark.parametrize("kind", ["med_agents", "md_agents"])
def test_the_large_baselines_are_built(models, images, kind):
    assert asked(built(images, system=kind, model="m", rounds=1))["decision"]["answer"] == "PET"


def test_samples_may_be_found_out(models, images):
    graph = built(images, samples=7, system="self_consistency", model="m", match_tokens="x")
    assert asked(graph)["decision"]["votes"] == 7


def test_a_triage_that_is_told_the_label(models, images):
    graph = built(images, system="mmedagent", triage="label", specialists="s", attending="a")
    assert asked(graph)["referral"]["specialty"] == "Radiologist"
    assert asked(graph, "Another?")["referral"]["specialty"] == "Dermatologist"


async def test_labels_are_there_whoever_asks_at_the_same_time(models, images):
    cases = [LabeledCase(str(i), f"Number {i}?", "CT", QUESTION["options"], specialty="Surgeon") for i in range(300)]
    system = System(system="mmedagent", triage="label", specialists="s", attending="a")
    graph = system.build(cases, images, Models())
    told = await asyncio.gather(*(graph.ainvoke({**QUESTION, "question": case.question}) for case in cases))
    assert {one["referral"]["specialty"] for one in told} == {"Surgeon"}


def test_labels_must_be_there(models, images):
    unlabelled = [LabeledCase("c", "What?", "CT")]
    system = System(system="mmedagent", triage="label", specialists="s", attending="a")
    with pytest.raises(ValueError, match="triage: label, but 1 cases have none \\('c' first\\)"):
        system.build(unlabelled, images, Models())


def test_specialists_are_samples(models, images):
    models["s"] = FakeModel(answer=lambda _: "CT", temperature=0.0)
    built_graph = built(images, system="mmedagent", triage="t", specialists="s", attending="a")
    asked(built_graph)
    assert models["s"].warmth == [1.0] * 3


@pytest.mark.parametrize(
    ("fields", "warmth"),
    [
        ({"system": "one_specialist", "triage": "t", "specialists": "s"}, [0.0]),
        ({"system": "all_specialties", "specialists": "s", "attending": "a"}, [0.0] * 7),
        ({"system": "all_specialties", "specialists": "s", "attending": "a", "doctors": 2}, [1.0] * 14),
        ({"system": "majority_vote", "triage": "t", "specialists": ["s", "m"]}, [0.0]),
    ],
)
def test_whoever_is_alone_is_asked_as_the_model_is(models, images, fields, warmth):
    models["s"] = FakeModel(answer=lambda _: "CT", temperature=0.0)
    asked(built(images, **fields))
    assert models["s"].warmth == warmth


def test_weights_are_told_apart_wherever_they_lie(tmp_path):
    for name in ("here", "there", "trained"):
        shutil.copytree(BASE, tmp_path / name)
    (file,) = (tmp_path / "trained").glob("*.safetensors")
    with file.open("r+b") as weights:
        weights.seek(file.stat().st_size // 2)
        weights.write(b"trained")
    assert contents(tmp_path / "here") == contents(tmp_path / "there") != contents(tmp_path / "trained")
    assert Models().weights(["clinic:base", "clinic:doctor-1"]) == {"clinic:base": contents(tmp_path / "here")}


def test_whom_a_system_asks(models):
    system = System(system="mmedagent", triage="random", specialists=["s", "m", "s"], attending="a")
    assert system.named == ["s", "m", "a"]


def test_a_model_is_loaded_once_and_may_have_a_rate_limit(models):
    limited = Models(per_minute=120)
    assert limited("m") is limited("m")
    assert limited("m").rate_limiter.requests_per_second == 2
    assert Models()("a").rate_limiter is None


def test_a_file_of_systems(yaml_file):
    systems = read_systems(
        yaml_file(f"systems:\n  full: {{system: mmedagent, {PANEL}, attending: a}}\n"
                  "  even: {system: self_consistency, model: m, match_tokens: full}\n")
    )  # fmt: skip
    assert list(systems) == ["full", "even"]
    assert systems["even"].match_tokens == "full"


REFUSED = {
    "no list": ("systems: 3", ["names none"]),
    "no YAML": ("systems: [", ["cannot be read"]),
    "unknown kind": ("systems: {x: {system: oracle}}", ["x: system: 'oracle'", "mmedagent, single"]),
    "no mapping": ("systems: {x: single}", ["x: system: 'single'"]),
    "a name that is no folder": ("systems: {'../x': {system: single, model: m}}", ["'../x' is no name"]),
    "what it does not take": (
        "systems: {x: {system: single, model: m, votes: 3}}",
        ["x: votes: single takes none", "it takes model"],
    ),
    "what it needs": ("systems: {x: {system: mmedagent, triage: t}}", ["x: specialists, attending: mmedagent needs"]),
    "unknown field": ("systems: {x: {system: single, modle: m}}", ["x: modle"]),
    "no votes": (f"systems: {{x: {{system: mmedagent, {PANEL}, attending: a, votes: 0}}}}", ["x: votes"]),
    "samples twice": (
        "systems: {y: {system: single, model: m}, "
        "x: {system: self_consistency, model: m, samples: 3, match_tokens: y}}",
        ["x: samples"],
    ),
    "nobody to match": (
        "systems: {x: {system: self_consistency, model: m, match_tokens: z}, y: {system: single, model: m}}",
        ["x: match_tokens: cannot match 'z'", "there are y"],
    ),
    "itself": ("systems: {x: {system: self_consistency, model: m, match_tokens: x}}", ["cannot match 'x'"]),
    "no seed": (
        "systems: {x: {system: majority_vote, triage: 'random:a', specialists: s}}",
        ["x: triage: 'random:a'", "random:SEED"],
    ),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(yaml_file, text, said):
    with pytest.raises(ValueError) as error:
        read_systems(yaml_file(text))
    assert all(part in str(error.value) for part in said)


def test_every_kind_says_what_it_takes():
    fields = set(System.model_fields) - {"system"}
    assert set().union(*TAKES.values()) == fields
