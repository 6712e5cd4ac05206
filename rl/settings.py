"""What every training command is told: who is treated and by whom, read from YAML and flags by TRL's parser.

Invariant: what cannot work is refused here, when the settings are read, and not an hour later.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

import yaml
from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool
from trl import ModelConfig, TrlParser

from mmedagent_graph.prompts import SPECIALTIES
from rl.cohort import CLINIC, FAINT
from rl.datasets import is_benchmark
from rl.guidelines import pinned as pinned_guideline
from rl.models import model_string, pinned
from rl.rollout import NODES

SEEDS = 10_000
"""Seeds lie below it: `rl.cohort` and `rl.clinic.build` keep their draws of cases that far apart."""
CONFIGS = Path(__file__).parent / "configs"
NULL = "null"
"""None, on the command line as in YAML: TRL documents it for some options that have another default."""


def setting(default: Any, text: str) -> Any:
    """A field of a recipe with what `--help` says of it."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class Consultations:
    """The consultations that are trained on, and which of their nodes learn."""

    model: str = setting("clinic:base", "The policy: `clinic:base`, a folder (also of an adapter) or a hub id.")
    nodes: list[str] = setting(
        ["attending"],
        "The nodes that learn: `attending`, `triage`, or both, by default in one policy; or `specialist`.",
    )
    specialty: str | None = setting(
        None, "Where a specialist learns: only the cases of this specialty. Default: all, each by its own specialty."
    )
    rehearse: str | None = setting(
        None,
        "Where a specialist learns: cases of all specialties (`clinic`, a JSONL file, a benchmark; another split than "
        "that of `cases`, or `train`, as CASES@SPLIT) that it goes on with beside its own. By SFT it keeps saying of "
        "them what it says; by GRPO it is paid for them, too. What it learns then stays its own, and merges better.",
    )
    rehearse_share: float = setting(1 / 3, "Share of these, where there are so many.")
    triage: str | None = setting(
        None, "Model string of a frozen triage doctor. Default: clinic:base for the clinic's cases, else the policy."
    )
    attending: str | None = setting(
        None, "Model string of a frozen attending, who decides what triage has referred. Default: as for triage."
    )
    specialists: list[str] = setting(
        [],
        "Model strings of the frozen specialists, one for each doctor; or the folder or address of a hospital that has "
        "the paper's specialties, whose own answer, each three times as its specialty. Default: the clinic's doctors "
        "for the clinic's cases, and three samples of the policy for cases of one's own.",
    )
    cases: str | None = setting(
        None,
        "JSONL file of cases, a benchmark (`slake`, `slake:FOLDER`), or `faint`: the clinic's, with faint findings. "
        "Default: the clinic's own, which are faint where a specialist learns.",
    )
    split: str | None = setting(None, "Rows of `cases` to train on, by their `split`.")
    eval_split: str | None = setting(
        None, "Rows of `cases` to measure on. Default: `holdout` of the training rows, held out by image."
    )
    holdout: float = setting(0.1, "Share of the training rows held out for measuring.")
    free_text: str = setting("skip", "Rows without options: `skip` them, or `grade` them as they are.")
    train_size: int = setting(2000, "Clinic cases to train on; a specialist's are faint ones (`rl.clinic.cases`).")
    eval_size: int = setting(1000, "Clinic cases to measure on.")
    freeze_vision: bool = setting(False, "Leave the vision tower as it is.")
    output: str = setting(
        "merged",
        "With --use_peft: the trained model is the whole model (`merged`, which loses much of what was learned in a "
        "--dtype of 16 bits) or an `adapter`.",
    )
    runs: str = setting(
        "runs",
        "Folder of all runs, and of what frozen models have answered (answers.db). Those that are served go by their "
        "name: where other weights are served under it, remove the file, or take another folder.",
    )
    name: str | None = setting(None, "The run's folder. Default: made of recipe and seed.")
    resume: bool = setting(False, "Go on with the run of this name (or the latest).")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        self.check_choices(free_text=("skip", "grade"), output=("merged", "adapter"))
        if not self.nodes or len(set(self.nodes)) < len(self.nodes) or set(self.nodes) - set(NODES):
            raise ValueError(f"nodes: {self.nodes}; name some of {', '.join(NODES)}, each once")
        if "specialist" in self.nodes and len(self.nodes) > 1:
            raise ValueError(f"nodes: {self.nodes}; a specialist learns alone, since nobody is asked before it")
        if self.specialty and "specialist" not in self.nodes:
            raise ValueError(f"specialty: {self.specialty!r}, but no specialist learns; give --nodes specialist")
        if self.rehearse and "specialist" not in self.nodes:
            raise ValueError(f"rehearse: {self.rehearse!r} is for a specialist; give --nodes specialist")
        if self.rehearse in (CLINIC, FAINT) and not self.made_up:
            raise ValueError(
                f"rehearse: {self.rehearse!r} is made up, and {self.cases!r} is not; give such cases, as in --rehearse "
                f"{self.cases}"
            )
        if not 0 < self.rehearse_share < 1:
            raise ValueError(f"rehearse_share: {self.rehearse_share} is no share between 0 and 1")
        if self.specialty and self.made_up and self.specialty not in SPECIALTIES:
            raise ValueError(f"specialty: {self.specialty!r} is none of the clinic's: {', '.join(SPECIALTIES)}")
        for node in self.nodes:
            if named := getattr(self, node, None):
                raise ValueError(f"{node}: {named!r} would be frozen, but {node} learns; set --model, or other --nodes")
        for field in ("split", "eval_split"):
            if self.made_up and (value := getattr(self, field)):
                raise ValueError(f"{field}: {value!r}, but the clinic's cases have no splits; give --cases FILE.jsonl")
        if self.cases is not None and is_benchmark(self.cases) and self.split is None:
            raise ValueError(f"split: name the rows of {self.cases!r} to train on, such as --split train")
        for field in ("train_size", "eval_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: {getattr(self, field)} is not a number of cases; give 1 or more")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout: {self.holdout} is not a share between 0 and 1")

    def check_choices(self, **choices: Sequence[str]) -> None:
        """Refuse a field whose value is not among the valid ones."""
        for field, valid in choices.items():
            if (value := getattr(self, field)) not in valid:
                raise ValueError(f"{field}: {value!r} is unknown; choose {' or '.join(valid)}")

    def check_with(self, trainer: Any, model: ModelConfig) -> None:
        """Refuse what cannot work together with TRL's settings."""

    @property
    def made_up(self) -> bool:
        """Whether the cases are the clinic's."""
        return self.cases in (None, FAINT)

    def by_label(self) -> bool:
        """Whether something is learned by the cases' triage labels."""
        return "triage" in self.nodes

    def by_key(self) -> list[str]:
        """The graders that count and need an answer key."""
        return []

    def without_keys(self) -> str | None:
        """What can be done about cases without an answer key; None where they are welcome."""
        return None if self.nodes == ["triage"] else "leave them out"

    def frozen(self, node: str) -> str:
        """Model string of a frozen triage doctor or attending."""
        named: str | None = getattr(self, node)
        return named or ("clinic:base" if self.made_up else model_string(self.model))


class Command(NamedTuple):
    """A training command."""

    module: str
    """As in `python -m <module>`."""
    config: Path | None
    """The recipe file where no `--config` is named; None for a resumed run, whose flags say all."""
    recipe: type[Consultations]
    trainer: type[TrainingArguments]
    """TRL's settings of its trainer."""


class Settings(NamedTuple):
    """All that a run is told."""

    recipe: Any
    """The command's recipe."""
    trainer: Any
    """TRL's `GRPOConfig` or `SFTConfig`."""
    model: ModelConfig


def read_settings(command: Command, arguments: Sequence[str]) -> Settings:
    """A command's settings from `--config FILE.yaml` and flags.

    Raises:
        ValueError: naming the field, its value and the valid choices.
    """
    settings = parse(command, arguments)
    check(settings)
    return settings


UNUSED = {
    "eval_strategy": ("no", "nothing evaluates during training; the held-out cases are measured before and after"),
    "eval_on_start": (False, "nothing evaluates during training; the held-out cases are measured before and after"),
    "resume_from_checkpoint": (None, "a run goes on by --resume"),
    "model_init_kwargs": (None, "the policy is loaded as --dtype, --attn_implementation and --load_in_4bit say"),
}
"""What TRL's settings have, and a run would pass over, or stumble on once the cases are rolled out."""


def _refuse_unused(trainer: Any, model: ModelConfig) -> None:
    for field, (default, instead) in UNUSED.items():
        if (value := getattr(trainer, field)) != default:
            raise ValueError(f"{field}: {getattr(value, 'value', value)!r} cannot be used: {instead}; leave it out")
    if model.model_revision != "main":
        raise ValueError(
            f"model_revision: {model.model_revision!r} would not be what is measured; download that revision, and give "
            "its folder as --model"
        )


def check(settings: Settings) -> None:
    """Refuse what cannot work together.

    Raises:
        ValueError: naming the field, its value and the valid choices.
    """
    recipe, trainer, model = settings
    if not 0 <= trainer.seed < SEEDS:
        raise ValueError(f"seed: {trainer.seed}; give 0 to {SEEDS - 1}, or draws of the clinic's cases would overlap")
    if model.model_name_or_path:
        raise ValueError(f"model_name_or_path: {model.model_name_or_path!r}; the policy is named by --model")
    _refuse_unused(trainer, model)
    recipe.check_with(trainer, model)


def read_early(
    arguments: Sequence[str], options: Sequence[str], switches: Sequence[str] = ()
) -> tuple[argparse.Namespace, list[str]]:
    """A few options that are needed before all the others can be read; and the rest of the command line.

    Args:
        arguments: the command line's.
        options: names of options with one value; None where one is not given, or `null`.
        switches: names of booleans, in every form that the whole parser takes.

    Raises:
        ValueError: naming the option and its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in options:
        parser.add_argument(f"--{name}")
    for name in switches:
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        parser.add_argument(*spellings, nargs="?", const=True, default=False, type=string_to_bool)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    for name in options:
        if getattr(found, name) == NULL:
            setattr(found, name, None)
    return found, rest


def config_name(command: Command, arguments: Sequence[str]) -> str:
    """The recipe file's name, without its ending."""
    file = config_file(command, arguments)
    return file.stem if file else ""


def config_file(command: Command, arguments: Sequence[str]) -> Path | None:
    """The recipe file that is named, or the command's own."""
    try:
        named = read_early(arguments, ["config"])[0].config
    except ValueError as error:
        raise ValueError(f"config: {error}; give a YAML file") from error
    file = Path(named) if named else command.config
    if file and not file.is_file():
        known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
        raise ValueError(f"config: no file {str(file)!r}; recipes in {CONFIGS} are {known}")
    return file


def launch_file(command: Command, arguments: Sequence[str]) -> Path | None:
    """The file of `accelerate launch` that a recipe names, which lies beside the recipe."""
    named = read_early(flags_of(command, arguments), ["accelerate"])[0].accelerate
    recipe = config_file(command, arguments)
    return (recipe.parent if recipe else Path()) / named if named else None


def pins(recipe: Consultations) -> list[str]:
    """Flags by which the models that a recipe names stay what they are, though `runs/latest` moves on.

    A guideline stays in its file, and is refused where that has been changed.
    """
    flags = []
    for field in ("model", "triage", "attending", "specialists", "judge"):
        named = getattr(recipe, field, None) or []
        names = [named] if isinstance(named, str) else named
        fixed = [pinned(name) for name in names]
        if fixed != names:
            flags += [f"--{field}", *fixed]
    if guideline := getattr(recipe, "guideline", None):
        flags += ["--guideline", pinned_guideline(guideline)]
    return flags


def ignore_renamed() -> None:
    """Say nothing of settings that transformers has renamed: they are TRL's own, and those of its readers."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def parse(command: Command, arguments: Sequence[str], processes: int | None = None) -> Settings:
    """The settings as TRL's parser reads them: YAML first, then flags.

    Args:
        command: whose settings.
        arguments: the command line's.
        processes: how many there will be, where that is not how many there are.

    Raises:
        ValueError: naming the option and its value.
    """
    trainer = command.trainer
    if processes:
        trainer = type(trainer.__name__, (trainer,), {"world_size": property(lambda _: processes)})
    parser = _Parser((command.recipe, trainer, ModelConfig))
    settings = Settings(*parser.parse_args_into_dataclasses(flags_of(command, arguments)))
    if settings.model.use_peft and settings.model.lora_target_modules is None:
        settings.model.lora_target_modules = "all-linear"  # PEFT has no default for Qwen2.5-VL, and would refuse late
    return settings


class _Parser(TrlParser):  # type: ignore[misc]
    """TRL's parser, with its refusals as exceptions, no abbreviated names, and `null` for None as in YAML."""

    def __init__(self, types: Sequence[type[Any]]) -> None:
        super().__init__(types, allow_abbrev=False)
        self._nullable = {
            field.name
            for one in types
            for field in dataclasses.fields(one)
            if field.default is None or NoneType in get_args(get_type_hints(one)[field.name])
        }

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if arg_strings != [NULL]:
            return super()._get_values(action, arg_strings)
        if action.dest not in self._nullable:
            raise ValueError(f"{action.dest}: null is none of its values; leave it out for the default")
        return None

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def flags_of(command: Command, arguments: Sequence[str]) -> list[str]:
    """A recipe file's options as flags, and those of the command line, which win.

    As defaults, which is how TRL reads a file, its values would have no type.
    """
    file = config_file(command, arguments)
    given = (yaml.safe_load(file.read_text()) or {}) if file else {}
    if not isinstance(given, dict):
        raise ValueError(f"config: {str(file)!r} is not a YAML mapping of options to values")
    flags = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *map(_word, values)]
    return [*flags, *read_early(arguments, ["config"])[1]]


def _word(value: Any) -> str:
    """A YAML value as one writes it on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)
