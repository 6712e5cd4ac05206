"""The systems of an evaluation: what a YAML file says of each, and the graph that it is.

    systems:
      alone: {system: single, model: vllm:Qwen/Qwen2.5-VL-7B-Instruct}
      untrained: {system: mmedagent, triage: vllm:Qwen/Qwen2.5-VL-7B-Instruct, ...}
      trained: {system: mmedagent, triage: vllm:triage, specialists: [openai:gpt-4o], attending: vllm:attending}
      scaled: {system: mmedagent, triage: vllm:triage, ..., votes: 9}
      consistent: {system: self_consistency, model: vllm:..., match_tokens: scaled}
      house: {system: mmedagent, hospital: hospitals/one}
      swapped: {system: mmedagent, hospital: http://127.0.0.1:8000/v1, specialists: {Surgeon: openai:gpt-4o}}

Whoever is named goes before the hospital (`mmedagent_graph.hospital`); specialists may be named by specialty. A triage
doctor may also be `random` or `random:SEED`, which draws the specialty; `label`, which is told it by the data set: the
bound that routing alone can reach; or `nobody`, who refers to no one, so that the attending decides alone.
"""

import contextlib
import functools
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from langchain_core.rate_limiters import InMemoryRateLimiter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmedagent_graph import SPECIALTIES, baselines, build_graph
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.context import Count, Share, Votes
from mmedagent_graph.hospital import Hospital, open_hospital, slug
from mmedagent_graph.images import ImageStore
from mmedagent_graph.many import in_one_line
from mmedagent_graph.models import load_model, sampled
from mmedagent_graph.state import TriageInput
from rl.datasets import LabeledCase
from rl.models import contents
from rl.policy import PolicyChatModel

Kind = Literal[
    "mmedagent",
    "single",
    "self_consistency",
    "majority_vote",
    "one_specialist",
    "all_specialties",
    "med_agents",
    "md_agents",
]
PANEL = {"hospital", "triage", "specialists"}
TAKES: dict[str, set[str]] = {
    "mmedagent": {*PANEL, "attending", "doctors", "votes", "abstain_below", "max_referrals"},
    "single": {"model"},
    "self_consistency": {"model", "samples", "match_tokens"},
    "majority_vote": {*PANEL, "doctors"},
    "one_specialist": {*PANEL},
    "all_specialties": {"hospital", "specialists", "attending", "doctors"},
    "med_agents": {"model", "rounds"},
    "md_agents": {"model", "rounds"},
}
"""What may be said of each system."""
DOCTORS = ("triage", "specialists", "attending")
NEEDS = ("model", *DOCTORS)
"""What must be said of a system that takes it; the doctors, where there is no hospital."""
HOSPITAL = "hospital:"
"""Begins what stands for a doctor of a hospital's: `hospital:WHERE#NAME`."""
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
RANDOM = re.compile(r"random(?::(\d+))?")
LABEL, NOBODY = "label", "nobody"


class System(BaseModel):
    """One system, as a YAML file describes it.

    Raises:
        ValidationError: (a ValueError) that names the field, the value and what is valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Kind
    model: str | None = None
    hospital: str | None = None
    triage: str | None = None
    specialists: str | list[str] | dict[str, str | list[str]] | None = None
    attending: str | None = None
    doctors: int | None = Field(default=None, ge=1)
    votes: Votes | None = None
    abstain_below: Share | None = None
    max_referrals: Count | None = None
    samples: int | None = Field(default=None, ge=1)
    match_tokens: str | None = None
    rounds: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _says_what_its_kind_takes(self) -> "System":
        taken = TAKES[self.system]
        given = {name for name in type(self).model_fields if name != "system" and getattr(self, name) is not None}
        if wrong := sorted(given - taken):
            raise ValueError(f"{', '.join(wrong)}: {self.system} takes none; it takes {', '.join(sorted(taken))}")
        needs = {*NEEDS} - {*DOCTORS} if self.hospital else {*NEEDS}
        if missing := [name for name in NEEDS if name in needs & taken - given]:
            other = ", or a hospital" if "hospital" in taken else ""
            raise ValueError(f"{', '.join(missing)}: {self.system} needs it; give a model string{other}")
        if self.triage and self.triage.startswith("random") and not RANDOM.fullmatch(self.triage):
            raise ValueError(f"triage: {self.triage!r} is none; give random, or random:SEED with a whole number")
        panels = self.specialists.values() if isinstance(self.specialists, dict) else [self.specialists]
        if self.system == "one_specialist" and any(isinstance(panel, list) for panel in panels):
            raise ValueError(
                f"specialists: {self.specialists!r}; one_specialist takes one model string, or one by specialty"
            )
        if self.doctors and isinstance(self.specialists, list):
            raise ValueError("doctors: a list of specialists says their number by its length; give one of them")
        if self.samples and self.match_tokens:
            raise ValueError("samples: it is what match_tokens finds out; give one of them")
        return self

    @functools.cached_property
    def doctors_named(self) -> dict[str, Any]:
        """Who is triage, specialists and attending, as strings: whoever is named, and else the hospital's.

        Raises:
            ValueError: if the hospital cannot be opened.
        """
        named = {name: getattr(self, name) for name in DOCTORS if getattr(self, name) is not None}
        if self.hospital is None:
            return named
        own = {name: f"{HOSPITAL}{self.hospital}#{name}" for name in ("triage", "attending")}
        told = {**own, **named}
        if not isinstance(self.specialists, str | list):
            panel = {specialty: f"{HOSPITAL}{self.hospital}#{slug(specialty)}" for specialty in self._specialties or ()}
            told["specialists"] = {**panel, **(self.specialists or {})}
        return {name: who for name, who in told.items() if name in TAKES[self.system]}

    @functools.cached_property
    def _specialties(self) -> tuple[str, ...] | None:
        """The hospital's, or those that specialists are named by; None: the paper's seven."""
        if self.hospital:
            return open_hospital(self.hospital).specialties or tuple(SPECIALTIES)
        return tuple(self.specialists) if isinstance(self.specialists, dict) else None

    @property
    def named(self) -> list[str]:
        """The models that it asks, as strings."""
        who = self.doctors_named
        triage = [who["triage"]] if "triage" in who and not self._is_no_model(who["triage"]) else []
        specialists = who.get("specialists", [])
        panels = specialists.values() if isinstance(specialists, dict) else [specialists]
        heard = [name for panel in panels for name in ([panel] if isinstance(panel, str) else panel)]
        return list(dict.fromkeys(name for name in (self.model, *triage, *heard, who.get("attending")) if name))

    @staticmethod
    def _is_no_model(triage: str) -> bool:
        return triage in (LABEL, NOBODY) or RANDOM.fullmatch(triage) is not None

    def build(
        self,
        cases: Sequence[LabeledCase],
        images: ImageStore,
        models: "Models",
        samples: int | None = None,
        **common: Any,
    ) -> Consultation:
        """The graph.

        Args:
            cases: that it will be asked, for a triage by `label`.
            images: their store.
            models: who loads the models.
            samples: of self-consistency, in place of its own.
            common: what every system takes: cache, retry_policy, timeout.
        """
        common = {"images": images, **common}
        given = {name: getattr(self, name) for name in TAKES[self.system] if getattr(self, name) is not None}
        given.pop("match_tokens", None)
        given.pop("hospital", None)
        given |= self.doctors_named
        if samples:
            given["samples"] = samples
        if self._specialties:
            given["specialties"] = self._specialties
        for name in ("model", "attending"):
            if name in given:
                given[name] = models(given[name])
        if "triage" in given:
            given["triage"] = self._triage(given["triage"], cases, images, models)
        if "specialists" in given:
            given["specialists"] = self._specialists(given["specialists"], models)
        if self.system == "one_specialist":
            given["specialist"] = given.pop("specialists")
        factory = {"mmedagent": build_graph}.get(self.system) or getattr(baselines, self.system)
        return cast(Callable[..., Consultation], factory)(**given, **common)

    def _triage(self, named: str, cases: Sequence[LabeledCase], images: ImageStore, models: "Models") -> Any:
        if drawn := RANDOM.fullmatch(named):
            return baselines.random_triage(self._specialties or tuple(SPECIALTIES), seed=int(drawn[1] or 0))
        if named == NOBODY:
            return lambda _: {"specialty": None}
        return labelled(cases, images) if named == LABEL else models(named)

    def _specialists(self, named: Any, models: "Models") -> Any:
        """One for all doctors, or one for each; where several have one model they are samples, or they would be one."""
        if isinstance(named, dict):
            return {specialty: self._specialists(panel, models) for specialty, panel in named.items()}
        if isinstance(named, list):
            several = {name for name in named if named.count(name) > 1}
            return [sampled(models(name)) if name in several else models(name) for name in named]
        alone = self.system == "one_specialist" or self.doctors == 1
        alone = alone or (self.system == "all_specialties" and self.doctors is None)
        return models(named) if alone else sampled(models(named))


class Models:
    """Loads the models of all systems, each once.

    Args:
        per_minute: at most so many requests a minute to each model. Default: no limit.
    """

    def __init__(self, per_minute: float | None = None) -> None:
        self._per_minute, self._known = per_minute, dict[str, Any]()
        self._hospitals: dict[str, Hospital] = {}

    def __call__(self, name: str) -> Any:
        """The model of a string.

        Raises:
            ValueError: naming what is wrong with it.
        """
        if name not in self._known:
            self._known[name] = self._doctor(name) if name.startswith(HOSPITAL) else load_model(name)
            if self._per_minute:
                self._known[name].rate_limiter = InMemoryRateLimiter(requests_per_second=self._per_minute / 60)
        return self._known[name]

    def _doctor(self, name: str) -> Any:
        where, _, doctor = name.removeprefix(HOSPITAL).rpartition("#")
        if where not in self._hospitals:
            self._hospitals[where] = open_hospital(where)
        return self._hospitals[where].models([doctor], lambda model, _: self(model))[doctor]

    def weights(self, names: Sequence[str]) -> dict[str, str]:
        """Of those of these models that run on this machine a hash of their weights, wherever they lie."""
        models = {name: self(name) for name in names}
        folders = {name: model.model_name for name, model in models.items() if isinstance(model, PolicyChatModel)}
        return {name: contents(Path(folder)) for name, folder in folders.items()}


def labelled(cases: Sequence[LabeledCase], images: ImageStore) -> Callable[[TriageInput], dict[str, Any]]:
    """A triage that is told the label; it knows a case by what it is asked."""
    if without := [case.id for case in cases if case.specialty is None]:
        raise ValueError(f"triage: label, but {len(without)} cases have none ({without[0]!r} first); name a model")
    labels: dict[str, str | None] = {}
    lock = threading.Lock()  # triage is asked in threads

    def asked(given: Mapping[str, Any]) -> str:
        return json.dumps([given["question"], given["options"], given["images"], given["context"]])

    def triage(given: TriageInput) -> dict[str, Any]:
        with lock:
            for case in cases if not labels else ():
                with contextlib.suppress(ValueError, OSError):  # what cannot be read fails as a case of its own
                    labels[asked(case.given().fields(images))] = case.specialty
        return {"specialty": labels[asked(given)]}

    return triage


def read_systems(path: Path) -> dict[str, System]:
    """The systems of a YAML file, by their names.

    Raises:
        ValueError: naming the file, the system, the field and what is valid.
    """
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"systems: {str(path)!r} cannot be read ({error}); give a YAML file") from error
    listed = told.get("systems") if isinstance(told, dict) else None
    if not (isinstance(listed, dict) and listed):
        raise ValueError(f"systems: {str(path)!r} names none; it must have `systems:`, with a name for each")
    systems = {str(name): _system(path, str(name), fields) for name, fields in listed.items()}
    for name, system in systems.items():
        others = ", ".join(other for other, known in systems.items() if not known.match_tokens)
        if system.match_tokens and (system.match_tokens not in systems or systems[system.match_tokens].match_tokens):
            raise ValueError(f"{path}: {name}: match_tokens: cannot match {system.match_tokens!r}; there are {others}")
    return systems


def _system(path: Path, name: str, fields: Any) -> System:
    if not NAME.fullmatch(name):
        raise ValueError(f"{path}: {name!r} is no name; use letters, digits and . + - _, for it names a folder")
    if not isinstance(fields, dict) or fields.get("system") not in get_args(Kind):
        kinds = ", ".join(get_args(Kind))
        told = fields.get("system") if isinstance(fields, dict) else fields
        raise ValueError(f"{path}: {name}: system: {told!r} is unknown; choose one of {kinds}")
    try:
        return System(**fields)
    except ValidationError as error:
        raise ValueError(f"{path}: {name}: {in_one_line(error)}") from None
