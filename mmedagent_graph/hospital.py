"""A hospital on one base model: triage, attending and every specialist are adapters of it.

    build_graph(hospital="hospitals/one")               # in this process
    build_graph(hospital="http://127.0.0.1:8000/v1")    # on a server; `python -m rl.serve hospitals/one` starts one

In a folder, `hospital.json` says who is who, with the adapters' folders relative to it; null is the base itself:

    {"base": "clinic:base", "triage": "triage", "attending": null, "specialists": {"Radiologist": "radiologist"}}

A server must serve everybody by name: `triage`, `attending`, and each specialty as `slug` writes it. Nobody stands in
for a name that is missing; who is to be the base itself is served as a further name of the base. What a server does not
tell is how a specialty of one's own is spelt: a folder does, whose `base` is the server's address (and who is null):

    {"base": "http://127.0.0.1:8000/v1", "triage": null, "attending": null, "specialists": {"Pediatrician": null}}
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mmedagent_graph.models import sampled, vllm_key, vllm_model
from mmedagent_graph.prompts import SPECIALTIES

Load = Callable[[str, str], BaseChatModel]
"""Makes a model of a model string, and names the argument if it cannot: `mmedagent_graph.models.Loader`."""
FILE = "hospital.json"
SERVER = ("http://", "https://")
PATIENCE = 30.0
"""Seconds in which a server must say what it serves."""


def slug(specialty: str) -> str:
    """What a server calls a specialty: `Nuclear medicine` is `nuclear-medicine`."""
    return re.sub(r"[^\w]+", "-", specialty.lower()).strip("-")


class HospitalFile(BaseModel):
    """What `hospital.json` says. `base` is a folder, a hub id, a model string such as `clinic:base`, or an address."""

    model_config = ConfigDict(extra="forbid")

    base: str
    triage: str | None
    attending: str | None
    specialists: dict[str, str | None]

    @model_validator(mode="after")
    def _names_differ(self) -> "HospitalFile":
        names = ["base", "triage", "attending", *map(slug, self.specialists)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"specialists: {', '.join(twice)} is named twice; as names of a server's they must differ")
        adapters = {"triage": self.triage, "attending": self.attending, **self.specialists}
        if self.base.startswith(SERVER) and (given := [name for name, adapter in adapters.items() if adapter]):
            raise ValueError(f"{', '.join(given)}: a server has adapters of its own; give null for whom it serves")
        return self


@dataclasses.dataclass(frozen=True)
class Hospital:
    """Who answers, by the names of a server's: model strings, or what the server calls them."""

    where: str
    doctors: Mapping[str, str]
    named: tuple[str, ...]
    """The specialties whose names are known."""
    base: str | None = None
    """The model string of a folder's; nobody knows a server's."""
    nameless: tuple[str, ...] = ()
    """A server's adapters that are nobody's whose name is known."""

    @property
    def specialties(self) -> tuple[str, ...]:
        """Its specialties.

        Raises:
            ValueError: if a server has adapters that may be of others: triage would never refer to them.
        """
        if self.nameless:
            raise ValueError(
                f"hospital: {self.where} serves {', '.join(self.nameless)} too, and does not tell whose they are; give "
                f"build_graph the specialties, or a folder whose {FILE} has the address as its base"
            )
        return self.named

    def models(self, names: Sequence[str], load: Load) -> dict[str, BaseChatModel]:
        """The models of these doctors.

        Raises:
            ValueError: naming those that are not there, and those that are; or a model that cannot be loaded.
        """
        if missing := [name for name in names if name not in self.doctors]:
            there = ", ".join(self.doctors) or "nobody"
            raise ValueError(f"hospital: {self.where} has no {', '.join(missing)}; it has {there}")
        named = {name: self.doctors[name] for name in names}
        if self.base is None:
            return {name: vllm_model(doctor, self.where) for name, doctor in named.items()}
        return {name: load(doctor, f"hospital: {name}") for name, doctor in named.items()}

    def specialists(self, specialties: Sequence[str], number: int, load: Load) -> dict[str, BaseChatModel]:
        """The model of each specialty; where a number of doctors have it they are samples, or they would be one."""
        models = self.models([slug(specialty) for specialty in specialties], load).values()
        panel = dict(zip(specialties, models, strict=True))
        return panel if number == 1 else {specialty: sampled(model) for specialty, model in panel.items()}


def is_hospital(where: str | Path) -> bool:
    """Whether this is a folder with `hospital.json`, or an address."""
    return str(where).startswith(SERVER) or (Path(where) / FILE).is_file()


def open_hospital(where: str | Path) -> Hospital:
    """The hospital of a folder or of a server's address.

    Raises:
        ValueError: naming what cannot be read, found or reached.
    """
    if str(where).startswith(SERVER):
        served = _served(str(where))
        of_the_paper = tuple(specialty for specialty in SPECIALTIES if slug(specialty) in served)
        known = {"triage", "attending", *map(slug, of_the_paper)}
        nameless = tuple(name for name, is_adapter in served.items() if is_adapter and name not in known)
        return Hospital(str(where), {name: name for name in served}, of_the_paper, nameless=nameless)
    folder, file = Path(where).resolve(), Path(where).resolve() / FILE
    try:
        told = HospitalFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"hospital: no {str(file)!r}; give a folder with {FILE}, or a server's address") from error
    except ValidationError as error:
        wrong = "; ".join(": ".join([".".join(map(str, one["loc"])), one["msg"]]) for one in error.errors())
        raise ValueError(f"hospital: {file}: {wrong}") from None
    if told.base.startswith(SERVER):
        return dataclasses.replace(open_hospital(told.base), named=tuple(told.specialists), nameless=())
    near = folder / told.base
    base = told.base if ":" in told.base else f"transformers:{near if near.is_dir() else told.base}"
    doctors = {}
    specialists = {slug(specialty): adapter for specialty, adapter in told.specialists.items()}
    for name, adapter in {"triage": told.triage, "attending": told.attending, **specialists}.items():
        if adapter is not None and not (folder / adapter / "adapter_config.json").is_file():
            raise ValueError(f"hospital: {file}: {name}: no adapter in {str(folder / adapter)!r}")
        doctors[name] = base if adapter is None else f"transformers:{(folder / adapter).resolve()}"
    return Hospital(str(folder), doctors, tuple(told.specialists), base)


def _served(url: str) -> dict[str, bool]:
    """What a server says that it serves, and whether that is an adapter, which names its base as its parent."""
    from openai import OpenAI, OpenAIError  # half a second of import, paid only where it is used

    try:
        with OpenAI(base_url=url, api_key=vllm_key(), timeout=PATIENCE) as client:
            return {model.id: bool(getattr(model, "parent", None)) for model in client.models.list()}
    except OpenAIError as error:
        raise ValueError(f"hospital: {url!r} does not say what it serves ({error}); give a server's .../v1") from error
