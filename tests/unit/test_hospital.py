"""A hospital: who answers in a graph that is given a folder or a server's address, and what is said of one amiss."""

import json
from typing import Any

import pytest
from fakes import QUESTION, FakeModel, answers, refers

from mmedagent_graph import SPECIALTIES, build_graph
from mmedagent_graph.hospital import open_hospital, slug
from mmedagent_graph.models import Loader

WHOLE = {
    "base": "clinic:base",
    "triage": "triage",
    "attending": None,
    "specialists": {"Radiologist": "specialists/radiologist", "Nuclear medicine": "specialists/nuclear"},
}
URL = "http://127.0.0.1:8000/v1"


@pytest.fixture
def folder(tmp_path):
    """Writes `hospital.json`, and the folders of its adapters."""

    def write(**changes):
        told = {**WHOLE, **changes}
        for adapter in (told["triage"], told["attending"], *told["specialists"].values()):
            if adapter:
                (tmp_path / adapter).mkdir(parents=True, exist_ok=True)
                (tmp_path / adapter / "adapter_config.json").write_text("{}")
        (tmp_path / "hospital.json").write_text(json.dumps(told))
        return tmp_path

    return write


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The model strings that are loaded; who answers says CT, refers to nuclear medicine, and is cold."""
    names: list[str] = []

    def load(name: str) -> Any:
        names.append(name)
        return refers("Nuclear medicine") if "triage" in name else FakeModel(answer=lambda _: "CT", temperature=0.0)

    monkeypatch.setattr("mmedagent_graph.models.load_model", load)
    return names


@pytest.fixture
def server(monkeypatch):
    """A server that serves these adapters, and a base."""

    def serve(*names):
        served = {name: name != "base" for name in names}
        monkeypatch.setattr("mmedagent_graph.hospital._served", lambda url: served)

    return serve


def test_who_is_who_in_a_folder(folder):
    where = folder()
    hospital = open_hospital(where)
    assert hospital.doctors == {
        "triage": f"transformers:{where / 'triage'}",
        "attending": "clinic:base",
        "radiologist": f"transformers:{where / 'specialists/radiologist'}",
        "nuclear-medicine": f"transformers:{where / 'specialists/nuclear'}",
    }
    assert hospital.specialties == ("Radiologist", "Nuclear medicine")


@pytest.mark.parametrize(
    ("base", "model"),
    [("base", "transformers:{here}/base"), ("Qwen/a", "transformers:Qwen/a"), ("transformers:x", "transformers:x")],
)
def test_the_base_is_a_folder_a_hub_id_or_a_model_string(folder, base, model):
    where = folder(base=base)
    (where / "base").mkdir()
    assert open_hospital(where).doctors["attending"] == model.format(here=where)


def test_a_consultation_in_a_folders_hospital(folder, loaded):
    graph = build_graph(hospital=folder())
    result = graph.invoke(QUESTION)
    assert result["referral"]["specialty"] == "Nuclear medicine"
    assert [opinion["answer"] for opinion in result["opinions"]] == ["CT"] * 3
    assert result["decision"]["answer"] == "CT"
    assert [name.rpartition("/")[2] for name in sorted(loaded)] == ["clinic:base", "nuclear", "radiologist", "triage"]


@pytest.mark.parametrize(("doctors", "warmth"), [(3, [1.0] * 3), (1, [0.0])])
def test_several_doctors_of_one_specialty_are_samples(folder, monkeypatch, doctors, warmth):
    models = {"triage": refers("Radiologist"), "attending": answers("CT")}
    specialist = FakeModel(answer=lambda _: "CT", temperature=0.0)
    loaded = {"clinic:base": models["attending"], "transformers": specialist}
    monkeypatch.setattr("mmedagent_graph.models.load_model", lambda name: loaded.get(name, specialist))
    build_graph(hospital=folder(), triage=models["triage"], doctors=doctors).invoke(QUESTION)
    assert specialist.warmth == warmth


def test_whoever_is_given_goes_before_the_hospital(folder, loaded):
    graph = build_graph(hospital=folder(), triage=refers("Radiologist"), specialists={"Radiologist": answers("MRI")})
    result = graph.invoke(QUESTION)
    assert [opinion["answer"] for opinion in result["opinions"]] == ["MRI"] * 3
    assert not [name for name in loaded if "triage" in name or "radiologist" in name]
    assert [name for name in loaded if "nuclear" in name]


def test_one_for_all_specialties_goes_before_the_hospitals(folder, loaded):
    graph = build_graph(hospital=folder(), specialists=answers("MRI"))
    assert [opinion["answer"] for opinion in graph.invoke(QUESTION)["opinions"]] == ["MRI"] * 3
    assert not [name for name in loaded if "specialists" in name]


def test_fewer_specialties_than_the_hospital_has(folder, loaded):
    build_graph(hospital=folder(), specialties=["Radiologist"])
    assert not [name for name in loaded if "nuclear" in name]


def test_a_specialty_that_the_hospital_has_not_is_named(folder, loaded):
    with pytest.raises(ValueError, match=r"hospital: .* has no surgeon; it has triage, attending, radiologist, nucl"):
        build_graph(hospital=folder(), specialties=["Radiologist", "Surgeon"])
    build_graph(hospital=folder(), specialties=["Radiologist", "Surgeon"], specialists={"Surgeon": answers("CT")})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"triage": 3}, r"triage: Input should be a valid string"),
        ({"attendings": None}, r"attendings: Extra inputs"),
        ({"specialists": {"X-ray": None, "X ray": None}}, r"specialists: x-ray is named twice"),
        ({"specialists": {"Triage": None}}, r"specialists: triage is named twice"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(folder, changes, told):
    where = folder()
    (where / "hospital.json").write_text(json.dumps({**WHOLE, **changes}))
    with pytest.raises(ValueError, match=rf"hospital: .*hospital\.json: .*{told}"):
        build_graph(hospital=where)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"hospital: no '.*hospital\.json'; give a folder .* or a server's address"):
        build_graph(hospital=tmp_path)


def test_an_adapter_that_is_not_there_is_named(folder):
    where = folder()
    (where / "triage" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"hospital: .*: triage: no adapter in '.*triage'"):
        build_graph(hospital=where)


def test_a_server_serves_everybody_by_name(server):
    server("base", "triage", "attending", *map(slug, SPECIALTIES))
    hospital = open_hospital(URL)
    assert hospital.specialties == tuple(SPECIALTIES)
    (model,) = hospital.models(["radiologist"], Loader()).values()
    assert (model.model_name, model.openai_api_base, model.temperature) == ("radiologist", URL, 0.0)


def test_specialties_of_ones_own_must_be_named_where_a_server_has_them(server):
    """Or triage would never refer to them, and nobody would be told."""
    server("base", "triage", "attending", "radiologist", "nuclear-medicine")
    with pytest.raises(ValueError, match=rf"hospital: {URL} serves nuclear-medicine too, .* give build_graph the spec"):
        build_graph(hospital=URL)
    build_graph(hospital=URL, specialties=["Nuclear medicine"])


def test_a_folder_names_the_specialties_of_a_server(server, tmp_path):
    server("base", "triage", "attending", "radiologist", "nuclear-medicine")
    told = {"base": URL, "triage": None, "attending": None, "specialists": {"Nuclear medicine": None}}
    (tmp_path / "hospital.json").write_text(json.dumps(told))
    assert open_hospital(tmp_path).specialties == ("Nuclear medicine",)
    (model,) = open_hospital(tmp_path).models(["nuclear-medicine"], Loader()).values()
    assert (model.model_name, model.openai_api_base) == ("nuclear-medicine", URL)
    build_graph(hospital=tmp_path)
    (tmp_path / "hospital.json").write_text(json.dumps({**told, "triage": "triage"}))
    with pytest.raises(ValueError, match="triage: a server has adapters of its own; give null for whom it serves"):
        open_hospital(tmp_path)


def test_the_base_stands_in_for_nobody(server):
    server("base", "attending", "radiologist")
    with pytest.raises(ValueError, match=rf"hospital: {URL} has no triage; it has base, attending, radiologist"):
        build_graph(hospital=URL)


def test_a_server_without_specialists_lacks_those_of_the_paper(server):
    server("base", "triage", "attending")
    with pytest.raises(ValueError, match=r"has no pathologist, radiologist, .*; it has base, triage, attending"):
        build_graph(hospital=URL)


def test_a_server_that_cannot_be_asked_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"hospital: 'http://127\.0\.0\.1:9/v1' does not say what it serves"):
        build_graph(hospital="http://127.0.0.1:9/v1")
