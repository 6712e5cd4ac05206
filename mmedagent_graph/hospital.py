"""A hospital on one base model: triage, attending and every specialist are adapters of it.

    build_graph(hospital="hospitals/one")               # in this process; `python -m rl.serve --make` makes the folder
    build_graph(hospital="http://127.0.0.1:8000/v1")    # on a server; `python -m rl.serve hospitals/one` starts one

In a folder, `hospital.json` says who is who, with the adapters' folders relative to it; null is the base itself:

    {"base": "clinic:base", "triage": "triage", "attending": null, "specialists": {"Radiologist": "radiologist"}}

A server must serve everybody by name: `triage`, `attending`, and each specialty as `slug` writes it. Nobody stands in
for a name that is missing; who is to be the base itself is served as a further name of the base.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mmedagent_graph.models import Loader, sampled, vllm_key, vllm_model
from mmedagent_graph.nodes import Swappable
from mmedagent_graph.nodes.staff import Panel
from mmedagent_graph.prompts import SPECIALTIES

FILE = "hospital.json"
GENERALISTS = ("triage", "attending")
PATIENCE = 30.0
"""Seconds in which a server must say what it serves."""


class HospitalFile(BaseModel):
    """What `hospital.json` says."""

    model_config = ConfigDict(extra="forbid")

    base: str
    """A folder, a hub id, or a model string such as `clinic:base`."""
    triage: str | None
    attending: str | None
    specialists: dict[str, str | None]

    @model_validator(mode="after")
    def _names_differ(self) -> "HospitalFile":
        names = ["base", *GENERALISTS, *map(slug, self.specialists)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"specialists: {', '.join(twice)} is named twice; as names of a server's they must differ")
        return self

    @property
    def adapters(self) -> dict[str, str | None]:
        """The adapter's folder of everybody, by the names of a server's; None is the base itself."""
        told = {slug(specialty): adapter for specialty, adapter in self.specialists.items()}
        return {"triage": self.triage, "attending": self.attending, **told}


@dataclasses.dataclass(frozen=True)
class Hospital:
    """Who answers, by the names of a server's: model strings, or what the server calls them."""

    where: str
    doctors: Mapping[str, str]
    specialties: tuple[str, ...]
    served: bool

    def check(self, names: Sequence[str]) -> None:
        """See that these are there.

        Raises:
            ValueError: naming those that are not, and those that are.
        """
        if missing := [name for name in names if name not in self.doctors]:
            there = ", ".join(self.doctors) or "nobody"
            raise ValueError(f"hospital: {self.where} has no {', '.join(missing)}; it has {there}")

    def model(self, name: str, load: Loader) -> BaseChatModel:
        """The model of one of its doctors."""
        doctor = self.doctors[name]
        return vllm_model(doctor, self.where) if self.served else load(doctor, f"hospital: {name}")


@dataclasses.dataclass(frozen=True)
class Doctors:
    """Who answers in a graph."""

    triage: Swappable
    specialists: Panel | Mapping[str, Panel]
    attending: Swappable
    specialties: Sequence[str]


def doctors_of(
    hospital: str | Path | None,
    triage: Swappable | None,
    specialists: Panel | Mapping[str, Panel] | None,
    attending: Swappable | None,
    specialties: Sequence[str] | None,
    number: int,
    load: Loader,
) -> Doctors:
    """Who answers in a graph: whoever is given, and else the hospital's; a mapping of specialists may name but some.

    A specialty has one model here. Where several doctors of it are heard they are samples, or they would be one.

    Raises:
        ValueError: naming who is not given, or is missing in the hospital, and who is there.
    """
    if hospital is None:
        if triage is None or specialists is None or attending is None:
            given = {"triage": triage, "specialists": specialists, "attending": attending}
            missing = ", ".join(name for name, one in given.items() if one is None)
            raise ValueError(f"{missing}: nobody is given; give a model string, or a hospital")
        return Doctors(triage, specialists, attending, specialties or tuple(SPECIALTIES))
    house = open_hospital(hospital)
    specialties = specialties or house.specialties or tuple(SPECIALTIES)
    given = specialists if isinstance(specialists, Mapping) else {}
    ours = [one for one in specialties if one not in given] if specialists is None or given else []
    generalists = [name for name, one in (("triage", triage), ("attending", attending)) if one is None]
    house.check([*generalists, *map(slug, ours)])
    own = {one: house.model(slug(one), load) for one in ours}
    if number != 1:
        own = {one: sampled(model) for one, model in own.items()}
    return Doctors(
        house.model("triage", load) if triage is None else triage,
        {**own, **given} if own or specialists is None else specialists,
        house.model("attending", load) if attending is None else attending,
        specialties,
    )


def slug(specialty: str) -> str:
    """What a server calls a specialty: `Nuclear medicine` is `nuclear-medicine`."""
    return re.sub(r"[^\w]+", "-", specialty.lower()).strip("-")


def read_hospital(folder: Path) -> HospitalFile:
    """What a folder's `hospital.json` says.

    Raises:
        ValueError: naming the file, the field and what is valid.
    """
    path = folder / FILE
    try:
        return HospitalFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"hospital: no {str(path)!r}; give a folder with {FILE}, or a server's address") from error
    except ValidationError as error:
        told = "; ".join(": ".join([".".join(map(str, one["loc"])), one["msg"]]) for one in error.errors())
        raise ValueError(f"hospital: {path}: {told}") from None


def open_hospital(where: str | Path) -> Hospital:
    """The hospital of a folder or of a server's address.

    Raises:
        ValueError: naming what cannot be read, found or reached.
    """
    if str(where).startswith(("http://", "https://")):
        names = _served(str(where))
        return Hospital(str(where), {name: name for name in names}, _of_the_paper(names), served=True)
    folder = Path(where).resolve()
    told = read_hospital(folder)
    known, near = ":" in told.base, folder / told.base
    base = told.base if known else f"transformers:{near if near.is_dir() else told.base}"
    for name, adapter in told.adapters.items():
        if adapter is not None and not (folder / adapter / "adapter_config.json").is_file():
            raise ValueError(f"hospital: {folder / FILE}: {name}: no adapter in {str(folder / adapter)!r}")
    doctors = {
        name: base if adapter is None else f"transformers:{(folder / adapter).resolve()}"
        for name, adapter in told.adapters.items()
    }
    return Hospital(str(folder), doctors, tuple(told.specialists), served=False)


def _of_the_paper(names: Sequence[str]) -> tuple[str, ...]:
    """The specialties that names stand for; what one's own specialties are called cannot be told from them."""
    return tuple(specialty for specialty in SPECIALTIES if slug(specialty) in names)


def _served(url: str) -> list[str]:
    """What a server says that it serves."""
    from openai import OpenAI, OpenAIError  # half a second of import, paid only where it is used

    try:
        with OpenAI(base_url=url, api_key=vllm_key(), timeout=PATIENCE) as client:
            return [model.id for model in client.models.list()]
    except OpenAIError as error:
        raise ValueError(f"hospital: {url!r} does not say what it serves ({error}); give a server's .../v1") from error
