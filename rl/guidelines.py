"""Clinical guidelines: YAML files that a clinician can edit (`rl/guidelines/general.yaml` says how).

The four reasoning perspectives are MMedExpert-R1's (arXiv 2601.10949); their words and checks are ours.

Invariant: a check is a function of the reasoning and the options alone. It judges form: the same text always passes the
same checks, and none of them knows the right answer.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from langchain_core.messages import BaseMessage, SystemMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmedagent_graph.answers import LETTERS

Name = Literal["differential", "intuitive", "analytical", "bayesian"]
PERSPECTIVES: tuple[Name, ...] = get_args(Name)
"""In the paper's order."""
GENERAL = Path(__file__).parent / "guidelines" / "general.yaml"
"""The guideline that comes with the package."""
KINDS = ("says_any", "options", "at_most_words", "pattern")
"""What a check may look for."""
LONGEST = 20_000
"""Characters of a reasoning that are looked at: beyond them it is no reasoning."""
PIN = "@sha256:"
LETTERED = re.compile(r"\b(?i:option|choice)\s+([A-Z])\b|\(([A-Z])\)")
SHOWN = 80
"""Characters of a wrong value that an error quotes."""


class Check(BaseModel):
    """Something that the reasoning must have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    says_any: list[str] | None = Field(default=None, min_length=1)
    options: int | None = Field(default=None, ge=1)
    at_most_words: int | None = Field(default=None, ge=1)
    pattern: str | None = Field(default=None, min_length=1)

    @field_validator("says_any")
    @classmethod
    def _has_words(cls, phrases: list[str] | None) -> list[str] | None:
        for phrase in phrases or ():
            if not phrase.replace("*", "").strip():
                raise ValueError(f"{phrase!r} has no word")
            if re.search(r"\*\w", phrase):
                raise ValueError(f"{phrase!r}: a * stands at the end of a word")
        return phrases

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression of Python's ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Check":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ValueError(f"{self.name!r} has {told}; a check has exactly one of {', '.join(KINDS)}")
        return self

    def passed(self, reasoning: str, options: Sequence[str]) -> bool | None:
        """Whether the reasoning has it; None where the question is not of the kind that it is for."""
        reasoning = reasoning[:LONGEST]
        if self.options is not None:
            return len(named_options(reasoning, options)) >= min(self.options, len(options)) if options else None
        if self.at_most_words is not None:
            return 0 < len(reasoning.split()) <= self.at_most_words  # none is not brief: it is none, or was cut off
        return self._sought.search(" ".join(reasoning.split())) is not None

    @cached_property
    def _sought(self) -> re.Pattern[str]:
        if self.pattern is not None:
            return re.compile(self.pattern, re.IGNORECASE)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(_phrase, self.says_any or ()))})(?!\w)", re.IGNORECASE)


def _phrase(told: str) -> str:
    """A phrase as a pattern: any white space between its words, and any ending in the place of a `*`."""
    return r"\s+".join(re.escape(word).replace(r"\*", r"\w*") for word in told.split())


class Perspective(BaseModel):
    """A way to reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1)
    checks: list[Check] = Field(min_length=1)

    @field_validator("checks")
    @classmethod
    def _differ(cls, checks: list[Check]) -> list[Check]:
        names = [check.name for check in checks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice; names must differ")
        return checks


class Guideline(BaseModel):
    """A guideline: of each perspective what is told and what is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    perspectives: dict[Name, Perspective]
    specialties: dict[str, str] = Field(default_factory=dict)
    """What is added for a specialty."""

    @field_validator("perspectives")
    @classmethod
    def _has_all(cls, told: dict[Name, Perspective]) -> dict[Name, Perspective]:
        if missing := [name for name in PERSPECTIVES if name not in told]:
            raise ValueError(f"{', '.join(missing)} is missing; there must be all of {', '.join(PERSPECTIVES)}")
        return {name: told[name] for name in PERSPECTIVES}

    def text(self, perspective: Name, specialty: str) -> str:
        """What a specialist is told who is to reason from this perspective."""
        lines = [self.perspectives[perspective].prompt, self.specialties.get(specialty, "")]
        return "\n".join(line.strip() for line in lines if line.strip())


def pinned(path: str) -> str:
    """The file and what it says, so that `read_guideline` refuses it once it says something else."""
    name = path.partition(PIN)[0]
    return f"{Path(name).resolve()}{PIN}{hashlib.sha256(Path(name).read_bytes()).hexdigest()}"


def read_guideline(path: str | Path = GENERAL) -> Guideline:
    """The guideline of a YAML file.

    Args:
        path: of the file, perhaps `pinned`.

    Raises:
        ValueError: naming the file, the field, the value and what is valid; or if it is not what was pinned.
    """
    path, _, digest = str(path).partition(PIN)
    try:
        data = Path(path).read_bytes()
        told = yaml.safe_load(data.decode())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"guideline: {path!r} cannot be read ({error}); give a YAML file") from error
    if digest and digest != hashlib.sha256(data).hexdigest():
        raise ValueError(f"guideline: {path!r} has changed since it was pinned; give back what it said, or begin anew")
    if not isinstance(told, dict):
        raise ValueError(f"guideline: {str(path)!r} has no `perspectives:`; see {GENERAL}")
    try:
        return Guideline(**{str(name): value for name, value in told.items()})
    except ValidationError as error:
        problems = "; ".join(_problem(dict(one)) for one in error.errors())
        raise ValueError(f"guideline: {path}: {problems}; see {GENERAL}") from None


def _problem(told: Mapping[str, Any]) -> str:
    """One thing that is wrong: the field, its value and what is valid."""
    field = ".".join(str(part) for part in told["loc"] if part != "[key]")
    said, value = told["msg"].removeprefix("Value error, "), repr(told["input"])
    if told["type"] == "missing":
        return f"{field}: it is missing"
    if told["type"] == "extra_forbidden":
        model = Guideline if len(told["loc"]) == 1 else Check if "checks" in told["loc"] else Perspective
        return f"{field}: there is no such field; fields are {', '.join(model.model_fields)}"
    quoted = "" if told["type"] == "value_error" else f"{value:.{SHOWN}}: "
    return f"{field}: {quoted}{said}"


def guided(messages: Sequence[BaseMessage], text: str) -> list[BaseMessage]:
    """A prompt whose system turn ends with a guideline's text."""
    system, *others = messages
    return [SystemMessage(f"{system.text}\n{text}"), *others]


def checks_passed(reasoning: str, options: Sequence[str], perspective: Perspective) -> dict[str, bool]:
    """Which of a perspective's checks a reasoning passes, by their names.

    Args:
        reasoning: what stands in the `<think>` block.
        options: of the question; empty where it has none.
        perspective: whose checks.

    Returns:
        A check that is not for this kind of question is left out.
    """
    found = {check.name: check.passed(reasoning, options) for check in perspective.checks}
    return {name: passed for name, passed in found.items() if passed is not None}


def named_options(text: str, options: Sequence[str]) -> set[int]:
    """The options that a text names, as whole words, or by their letters as in "option B" or "(B)".

    Of an option within another ("effusion" in "pleural effusion") only the longer is named.
    """
    plain = [_plain(option) for option in options]
    longest_first = "|".join(map(re.escape, sorted({option for option in plain if option}, key=len, reverse=True)))
    said = set(re.findall(rf"(?<!\w)(?:{longest_first})(?!\w)", _plain(text))) if longest_first else set()
    letters = {LETTERS.index(named or bracketed) for named, bracketed in LETTERED.findall(text)}
    return {number for number, option in enumerate(plain) if option in said or number in letters}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
