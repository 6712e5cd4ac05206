"""Systems from YAML: what each kind takes and needs, and the graphs they become."""

import asyncio
import json
import shutil

import pytest
import torch
from fakes import QUESTION, FakeModel, answers, refers
from safetensors.torch import save_file

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


def test_an_adapters_weights_are_its_bases_too(tmp_path):
    """What it adds is something else to another base."""
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    told = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(told))
    save_file({"lora": torch.zeros(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    before = contents(tmp_path / "adapter")
    save_file({"base": torch.zeros(1)}, tmp_path / "base" / "model.safetensors")
    assert contents(tmp_path / "adapter") != before


@pytest.fixture
def hospital(tmp_path, monkeypatch, models):
    """A folder's, with an own specialty; its models are known by the last part of their names."""
    for adapter in ("triage", "surgeon", "nuclear"):
        (tmp_path / adapter).mkdir()
        (tmp_path / adapter / "adapter_config.json").write_text("{}")
    told = {"base": "clinic:base", "triage": "triage", "attending": None}
    told["specialists"] = {"Surgeon": "surgeon", "Nuclear medicine": "nuclear"}
    (tmp_path / "hospital.json").write_text(json.dumps(told))
    who = {"triage": refers("Nuclear medicine"), "surgeon": answers("CT"), "nuclear": answers("PET")}
    who["clinic:base"] = answers("MRI")
    monkeypatch.setattr("rl.systems.load_model", lambda name: models.get(name) or who[name.rpartition("/")[2]])
    return str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "heard", "answer"),
    [
        ({"system": "mmedagent"}, ["PET"] * 3, "MRI"),
        ({"system": "mmedagent", "doctors": 1, "attending": "a"}, ["PET"], "MRI"),
        ({"system": "mmedagent", "triage": "t"}, ["CT"] * 3, "MRI"),
        ({"system": "mmedagent", "specialists": {"Nuclear medicine": ["s", "m"]}}, ["CT", "PET"], "MRI"),
        ({"system": "mmedagent", "specialists": "s"}, ["CT"] * 3, "MRI"),
        ({"system": "majority_vote"}, ["PET"] * 3, "PET"),
        ({"system": "one_specialist"}, ["PET"], "PET"),
        ({"system": "all_specialties"}, ["CT", "PET"], "MRI"),
    ],
)
def test_a_hospital_stands_in_for_whoever_is_not_named(hospital, images, fields, heard, answer):
    result = asked(built(images, hospital=hospital, **fields))
    assert [opinion["answer"] for opinion in result["opinions"]] == heard
    assert result["decision"]["answer"] == answer


def test_chance_refers_to_the_hospitals_own(hospital, images):
    referred = {
        asked(built(images, system="mmedagent", hospital=hospital, triage=f"random:{seed}"))["referral"]["specialty"]
        for seed in range(20)
    }
    assert referred == {"Surgeon", "Nuclear medicine"}


def test_whom_a_hospitals_system_asks(hospital):
    swapped = System(system="mmedagent", hospital=hospital, attending="a", specialists={"Surgeon": ["s", "m"]})
    doctors = [f"hospital:{hospital}#{name}" for name in ("triage", "nuclear-medicine")]
    assert swapped.named == [doctors[0], "s", "m", doctors[1], "a"]
    assert System(system="all_specialties", hospital=hospital).named == [
        f"hospital:{hospital}#{name}" for name in ("surgeon", "nuclear-medicine", "attending")
    ]


def test_all_weights_of_a_hospital_are_told(tmp_path):
    told = {"base": "clinic:base", "triage": None, "attending": None, "specialists": {"Surgeon": None}}
    (tmp_path / "hospital.json").write_text(json.dumps(told))
    system = System(system="mmedagent", hospital=str(tmp_path))
    doctors = [f"hospital:{tmp_path}#{name}" for name in ("triage", "surgeon", "attending")]
    assert Models().weights(system.named) == dict.fromkeys(doctors, contents(BASE))


def test_a_server_is_asked_once_whom_it_serves_and_each_may_have_a_rate_limit(monkeypatch):
    asked = []
    served = {"base": False, "triage": True, "attending": True, "radiologist": True}
    monkeypatch.setattr("mmedagent_graph.hospital._served", lambda url: asked.append(url) or served)
    models = Models(per_minute=60)
    names = [f"hospital:http://there/v1#{name}" for name in ("triage", "radiologist")]
    assert [models(name).model_name for name in names] == ["triage", "radiologist"]
    assert models(names[0]).openai_api_base == "http://there/v1"
    assert models(names[0]).rate_limiter.requests_per_second == 1
    assert asked == ["http://there/v1"]
    with pytest.raises(ValueError, match="hospital: http://there/v1 has no surgeon; it has base, triage"):
        models("hospital:http://there/v1#surgeon")


def test_specialists_by_specialty(models, images):
    fields = {"system": "mmedagent", "triage": "t", "attending": "a"}
    result = asked(built(images, **fields, specialists={"Surgeon": "s", "Dentist": "m"}, doctors=2))
    assert [opinion["answer"] for opinion in result["opinions"]] == ["CT", "CT"]


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
    "no hospital": (
        "systems: {x: {system: single, model: m, hospital: h}}",
        ["x: hospital: single takes none", "it takes model"],
    ),
    "neither doctors nor hospital": ("systems: {x: {system: majority_vote}}", ["x: triage, specialists", "a hospital"]),
    "several for one": (
        "systems: {x: {system: one_specialist, triage: t, specialists: {Surgeon: [s, m]}}}",
        ["x: specialists: {'Surgeon': ['s', 'm']}; one_specialist takes one model string"],
    ),
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
