"""Tests of the command line, with fakes in the place of models: `fake:nodule` answers nodule."""

import asyncio
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, answers, encoded, image, pictures, says, words
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from PIL import Image

from mmedagent_graph import cli, many, models
from mmedagent_graph.cli import main
from mmedagent_graph.defaults import CLINIC, VARIABLES, default_graph
from mmedagent_graph.many import Results, check_cases, consult_many, read_cases
from mmedagent_graph.terminal import Terminal, clean

QUESTION = ["--question", "What is it?"]
OPTIONS = ["--option", "nodule", "--option", "cyst"]
FIELDS = ["referral", "opinions", "decision", "usage"]


class Slow(FakeModel):
    """Never answers."""

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(3600)
        return self._generate(messages)


class Clinic:
    """Makes the models of `fake:`, and knows what they were asked."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.models: dict[str, FakeModel] = {}
        self.answer: Callable[[Sequence[BaseMessage]], str] | None = None

    def __call__(self, name: str) -> FakeModel:
        self.loaded.append(name)
        if name not in self.models:
            self.models[name] = self._model(name)
        return self.models[name]

    def _model(self, name: str) -> FakeModel:
        kind, _, text = name.partition("=")
        if kind == "says":
            return says(text)
        if kind == "breaks":
            return FakeModel(answer=lambda _: self._raise(ConnectionError("no route\nto the host")))
        if kind == "flaky":
            return FakeModel(answer=lambda _: self._later(name))
        if kind == "slow":
            return Slow(answer=lambda _: "<answer>nodule</answer>")
        if kind == "by":
            return FakeModel(answer=lambda messages: self.answer(messages) if self.answer else "")
        return answers(name, because="I see it.")

    def _later(self, name: str) -> str:
        if len(self.models[name].seen) == 1:
            raise ConnectionError("not yet")
        return "<answer>nodule</answer>"

    @staticmethod
    def _raise(error: Exception) -> str:
        raise error

    @property
    def asked(self) -> list[list[BaseMessage]]:
        """Everything that any model was shown."""
        return [messages for model in self.models.values() for messages in model.seen]


@pytest.fixture
def clinic(monkeypatch: pytest.MonkeyPatch) -> Clinic:
    """The providers `fake:` and, in the place of the embedded clinic, `clinic:`; triage is named by the environment."""
    made = Clinic()
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(models, "BUILT_IN", {"fake": made, "clinic": made})
    monkeypatch.setenv("MMEDAGENT_TRIAGE", "fake:Radiologist")
    monkeypatch.setenv("MMEDAGENT_SPECIALISTS", "fake:nodule, fake:cyst ,fake:nodule")
    monkeypatch.setenv("MMEDAGENT_ATTENDING", "fake:nodule")
    monkeypatch.setenv("COLUMNS", "80")
    return made


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with cases that have images beside them."""
    folder = tmp_path / "files"
    (folder / "images").mkdir(parents=True)
    for color in ("red", "blue"):
        (folder / "images" / f"{color}.png").write_bytes(encoded(image(color)))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def written(path: Path, rows: Sequence[Any]) -> Path:
    """A file of cases; a text is a line as it is, with bytes that are no UTF-8 as Python escapes them."""
    text = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(text) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


def rows(*ids: Any) -> list[dict[str, Any]]:
    return [{"id": each, "question": f"What is {each}?", "options": ["nodule", "cyst"]} for each in ids]


def exit_code(arguments: Sequence[str]) -> int:
    """The exit code, whether argparse or the command says it."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(str(error.code))


# --- who answers ---


def test_a_flag_goes_before_the_environment(clinic: Clinic) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, "--attending", "fake:cyst", "--triage", "fake:Surgeon"]) == 0
    assert set(clinic.loaded) == {"Surgeon", "cyst", "nodule"}


def test_the_clinic_answers_where_nobody_is_named(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES.values():
        monkeypatch.setenv(name, " ")  # as good as not set
    default_graph(images=None)
    assert sorted(set(clinic.loaded)) == ["base", "doctor-1", "doctor-2", "doctor-3"]
    assert CLINIC["specialists"] == ["clinic:doctor-1", "clinic:doctor-2", "clinic:doctor-3"]


@pytest.mark.parametrize("given", [["--specialists", "fake:cyst"], []])
def test_one_specialist_stands_for_all_doctors(
    given: list[str], clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMEDAGENT_SPECIALISTS", "fake:cyst")
    main(["consult", *QUESTION, *OPTIONS, "--json", *given])
    assert [opinion["answer"] for opinion in json.loads(capsys.readouterr().out)["opinions"]] == ["cyst"] * 3


def test_several_specialists_are_the_doctors(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    main(["consult", *QUESTION, *OPTIONS, "--json", "--specialists", "fake:cyst", "fake:nodule"])
    assert [opinion["answer"] for opinion in json.loads(capsys.readouterr().out)["opinions"]] == ["cyst", "nodule"]


def test_an_empty_place_among_the_specialists_is_refused(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEDAGENT_SPECIALISTS", "fake:cyst,")
    with pytest.raises(ValueError, match=r"MMEDAGENT_SPECIALISTS: 'fake:cyst,' has an empty place"):
        default_graph()


@pytest.mark.parametrize("found", [[EntryPoint("clinic", "no_such_package:model", models.GROUP)], []])
def test_a_clinic_that_is_not_installed_says_what_to_install(
    found: list[EntryPoint], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MMEDAGENT_TRIAGE", "vllm:a")
    monkeypatch.setattr(models, "entry_points", lambda *, group: found)
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    assert main(["consult", *QUESTION]) == 2
    assert capsys.readouterr().err == (
        "error: specialists, attending: no model is named, and the clinic that answers by default is not installed; "
        "pip install 'mmedagent-graph[rl]', or name one "
        "(MMEDAGENT_SPECIALISTS, MMEDAGENT_ATTENDING, MMEDAGENT_HOSPITAL)\n"
    )


@pytest.fixture
def hospital(tmp_path: Path) -> str:
    """One whose base is everybody."""
    told = {"base": "fake:cyst", "triage": None, "attending": None, "specialists": {"Radiologist": None}}
    (tmp_path / "hospital.json").write_text(json.dumps(told))
    return str(tmp_path)


def test_a_hospital_that_is_given_goes_before_the_environment(clinic: Clinic, hospital: str) -> None:
    main(["consult", *QUESTION, *OPTIONS, "--hospital", hospital, "--attending", "fake:scar"])
    assert set(clinic.loaded) == {"cyst", "scar"}


def test_the_environments_hospital_is_for_whoever_is_not_named(
    clinic: Clinic, hospital: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MMEDAGENT_SPECIALISTS")
    monkeypatch.setenv("MMEDAGENT_HOSPITAL", hospital)
    main(["consult", *QUESTION, *OPTIONS, "--json"])
    assert set(clinic.loaded) == {"Radiologist", "cyst", "nodule"}
    told = json.loads(capsys.readouterr().out)
    assert [opinion["answer"] for opinion in told["opinions"]] == ["cyst"] * 3
    assert told["decision"]["answer"] == "nodule"


def test_the_clinic_need_not_be_installed_where_all_are_named(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "BUILT_IN", {"fake": clinic})
    monkeypatch.setattr(models, "entry_points", lambda *, group: [])
    assert main(["consult", *QUESTION, *OPTIONS]) == 0


# --- one consultation ---


def test_a_consultation_is_shown_as_it_happens(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consult", *QUESTION, *OPTIONS]) == 0
    out, err = capsys.readouterr()
    said = out.splitlines()
    assert err == ""
    assert said[:2] == ["referral    Radiologist", "            I see it."]
    assert sorted(said[2:8]) == sorted(
        ["doctor 1    nodule", "doctor 2    cyst", "doctor 3    nodule", *["            I see it."] * 3]
    )
    assert said[8:] == [
        "decision    nodule",
        "            I see it.",
        "agreement   67% of 3 readable opinions",
        "usage       5 model calls, 35 tokens in, 15 out",
    ]


def test_votes_and_a_failed_doctor_are_shown(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    doctors = ["fake:nodule", "fake:breaks", "fake:says=Hm."]
    assert main(["consult", *QUESTION, *OPTIONS, "--votes", "3", "--specialists", *doctors]) == 0
    out = capsys.readouterr().out
    assert "doctor 2    failed: ConnectionError: no route\n            to the host\n" in out
    assert "doctor 3    unreadable\n" in out
    assert "vote 3      nodule\n" in out
    assert "votes       nodule 3 (3 of at most 3)\n" in out
    assert "agreement   100% of 1 readable opinions\n" in out
    assert "confidence  100% of 3 votes\n" in out


def test_the_attending_may_ask_for_another_specialty(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    def refers_once(messages: Sequence[BaseMessage]) -> str:
        first = "refer to" in words(messages[:1])
        return f"<answer>{'refer to Oncologist' if first else 'cyst'}</answer>"

    clinic.answer = refers_once
    assert main(["consult", *QUESTION, *OPTIONS, "--max-referrals", "1", "--attending", "fake:by"]) == 0
    out = capsys.readouterr().out
    assert "vote 1      refer to Oncologist\nvotes       none readable (1 of at most 1)\n" in out
    assert "referral    Oncologist (asked for by the attending)\n" in out
    assert "doctor 6    nodule\n" in out
    assert "decision    cyst\n" in out


def test_an_unreadable_referral_is_shown(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, "--triage", "fake:nobody"]) == 0
    assert capsys.readouterr().out.startswith("referral    unreadable: no specialist is heard\n            I see it.\n")


def test_json_is_one_object_and_nothing_else(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(name: str) -> FakeModel:
        print("loading weights")
        return clinic(name)

    monkeypatch.setitem(models.BUILT_IN, "fake", chatty)
    assert main(["consult", *QUESTION, *OPTIONS, "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert list(json.loads(out)) == FIELDS
    assert json.loads(out)["decision"]["answer"] == "nodule"
    assert set(err.splitlines()) == {"loading weights"}


@pytest.mark.parametrize("shown", [[], ["--json"]])
@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--attending", "fake:says=Hm."], "the answer could not be read"),
        (["--attending", "fake:says=Hm.", "--votes", "2", "--abstain-below", "0.5"], "the majority is too weak"),
    ],
)
def test_no_decision_has_an_exit_code_of_its_own(
    given: list[str], why: str, shown: list[str], clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, *given, *shown]) == 3
    out = capsys.readouterr().out
    if shown:
        assert json.loads(out)["decision"]["answer"] is None
    else:
        assert f"decision    none: {why}, a human must decide\n" in out


def test_a_failure_is_one_line(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, "--attending", "fake:breaks", "--json"]) == 1
    assert capsys.readouterr() == ("", "error: the consultation failed: ConnectionError: no route to the host\n")


def test_a_failure_of_the_models_own_input_is_no_bad_input(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.answer = lambda _: Clinic._raise(ValueError("prompt too long"))
    assert main(["consult", *QUESTION, *OPTIONS, "--attending", "fake:by"]) == 1
    assert capsys.readouterr().err == "error: the consultation failed: ValueError: prompt too long\n"


def test_debug_shows_the_traceback(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, "--attending", "fake:breaks", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: the consultation failed: ConnectionError: no route to the host\n")


BAD_INPUT: list[tuple[list[str], str]] = [
    (["--question", " "], "question: question is empty; give the question as text"),
    ([*QUESTION, "--option", "a"], "options: options has one entry, 'a'; give two or more, or none"),
    ([*QUESTION, "--option", "a", "--option", "A "], "options: options[1] 'A' repeats options[0] 'a'"),
    ([*QUESTION, "--image", "none.png"], "images[0]: cannot read 'none.png' (No such file or directory)"),
    ([*QUESTION, "--votes", "0"], "argument --votes: '0' is not a whole number of 1 or more, or adaptive"),
    ([*QUESTION, "--votes", "many"], "argument --votes: 'many' is not a whole number of 1 or more, or adaptive"),
    ([*QUESTION, "--abstain-below", "0.5"], "needs votes: 2 or more, or 'adaptive'"),
    ([*QUESTION, "--abstain-below", "2", "--votes", "3"], "abstain_below: Input should be less than or equal to 1"),
    ([*QUESTION, "--attending", "gpt"], "attending: model: 'gpt' is not of the form 'provider:model'"),
    ([*QUESTION, "--timeout", "0"], "argument --timeout: '0' is not a number of seconds above 0"),
    ([*QUESTION, "--timeout", "nan"], "argument --timeout: 'nan' is not a number of seconds above 0"),
    ([*QUESTION, "--retries", "-1"], "argument --retries: '-1' is not a whole number of 0 or more"),
    ([*QUESTION, "--images", __file__], f"--images: cannot use {__file__!r} (File exists); give a folder"),
    ([*QUESTION, "--cache", "/"], "--cache: cannot use '/' (unable to open database file); give an SQLite file"),
    ([*QUESTION, "--cache", __file__], "(file is not a database); give an SQLite file, or a new one"),
    ([*QUESTION, "--frame", "1"], "argument --frame: give it once, after the --image that it belongs to"),
    ([*QUESTION, "--image", "a", "--frame", "1", "--frame", "2"], "argument --frame: give it once, after the --image"),
    ([*QUESTION, "--review"], "--review asks on the terminal: it goes neither with --json nor without one"),
    ([*QUESTION, "--opt", "a"], "unrecognized arguments: --opt a"),
    ([], "the following arguments are required: --question"),
]


@pytest.mark.parametrize(("given", "message"), BAD_INPUT)
def test_bad_input_is_told_in_words(
    given: list[str], message: str, clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["consult", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not clinic.asked


def test_a_bad_case_is_refused_before_a_model_is_loaded(clinic: Clinic) -> None:
    assert main(["consult", "--question", ""]) == 2
    assert not clinic.loaded


def test_a_cache_without_its_package_says_what_to_install(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "langgraph.cache.sqlite", None)
    assert main(["consult", *QUESTION, "--cache", str(tmp_path / "answers.db")]) == 2
    assert "--cache needs langgraph.cache.sqlite; pip install 'mmedagent-graph[sqlite]'" in capsys.readouterr().err


def test_a_cache_is_not_asked_twice(clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langgraph.cache.sqlite")
    again = ["consult", *QUESTION, *OPTIONS, "--cache", str(tmp_path / "new" / "answers.db")]
    assert main(again) == 0
    asked = len(clinic.asked)
    capsys.readouterr()
    assert main(again) == 0
    assert len(clinic.asked) == asked == 5
    assert "usage       0 model calls, 0 tokens in, 0 out, 5 answers from the cache\n" in capsys.readouterr().out


@pytest.mark.parametrize(("retries", "code"), [("0", 1), ("1", 0)])
def test_a_call_is_tried_again(retries: str, code: int, clinic: Clinic) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, "--attending", "fake:flaky", "--retries", retries]) == code


def test_a_call_is_cut_off(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consult", *QUESTION, *OPTIONS, "--attending", "fake:slow", "--timeout", "0.5"]) == 1
    assert "error: the consultation failed: NodeTimeoutError: Node '" in capsys.readouterr().err


def test_images_and_context_reach_the_models(clinic: Clinic, files: Path, tmp_path: Path) -> None:
    red, blue = encoded(image("red")), encoded(image("blue"))
    given = ["--image", str(files / "images" / "red.png"), "--image", str(files / "images" / "blue.png")]
    kept = tmp_path / "store"
    assert main(["consult", *QUESTION, *OPTIONS, *given, "--context", "Age 63.", "--images", str(kept)]) == 0
    shown = [Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0)) for data in pictures(clinic.asked[0])]
    assert shown == [Image.open(io.BytesIO(data)).getpixel((0, 0)) for data in (red, blue)]
    assert "Context: Age 63." in words(clinic.models["nodule"].seen[0])
    assert len(list(kept.iterdir())) == 2


def test_a_frame_is_of_the_image_before_it(clinic: Clinic, files: Path) -> None:
    frames = [image(color) for color in ("red", "blue", "lime")]
    scan = files / "scan.tif"
    frames[0].save(scan, save_all=True, append_images=frames[1:])
    red = ["--image", str(files / "images" / "red.png")]
    assert main(["consult", *QUESTION, *OPTIONS, *red, "--image", str(scan), "--frame", "2", *red]) == 0
    shown = [Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0)) for data in pictures(clinic.asked[0])]
    assert shown == [(255, 0, 0), (0, 255, 0), (255, 0, 0)]


class Typing:
    """Somebody who types, in the place of `input`."""

    def __init__(self, *typed: str) -> None:
        self.typed, self.prompts = list(typed), list[str]()

    def __call__(self, prompt: str = "") -> str:
        self.prompts.append(prompt)
        if not self.typed:
            raise EOFError
        return self.typed.pop(0)


@pytest.fixture
def reviewed(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Reviews a consultation, typing what is given; the exit code and what was printed."""

    def review(*typed: str, options: Sequence[str] = OPTIONS) -> tuple[int, str]:
        monkeypatch.setattr("builtins.input", Typing(*typed))
        monkeypatch.setattr(cli, "_is_terminal", lambda _: True)
        code = main(["consult", *QUESTION, *options, "--review"])
        return code, capsys.readouterr().out

    return review


@pytest.mark.parametrize("typed", ["approve", "a", " A "])
def test_a_reviewer_approves(typed: str, reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed(typed)
    assert code == 0
    assert out.count("decision    nodule\n") == 1
    assert "review      approved\n" in out


@pytest.mark.parametrize("typed", ["cyst", "B", "(b)"])
def test_a_reviewer_changes_the_answer(typed: str, reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed("c", typed, "Thin wall.")
    assert code == 0
    assert "            A. nodule\n            B. cyst\n" in out
    assert "review      changed\ndecision    cyst\n            Thin wall.\nagreement   33% of 3" in out


def test_what_a_reviewer_types_is_never_guessed(reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed("change", "cys", "", "change", "", "", "change", " ", "", "", "x", "a")
    said = " ".join(out.split())
    assert code == 0
    assert said.count("verdict.answer: 'cys' is not an option") == 1
    assert said.count("change.answer: String should have at least 1 character") == 2
    assert said.count("Give an action: approve, change (answer), hear (specialty)") == 4
    assert "review approved usage" in said


def test_a_free_answer_is_not_blank(reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed("change", " ", "", "change", "scar", "", options=[])
    assert code == 0
    assert out.count("change.answer: String should have at least 1 character") == 1
    assert "decision    scar\n" in out


def test_a_reviewer_gives_a_free_answer(reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed("change", "A. scar", "", options=[])
    assert code == 0
    assert "decision    A. scar\n" in out


def test_a_reviewer_hears_another_specialist(reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed("hear", "nurse", "h", "oncologist", "a")
    assert code == 0
    assert "'nurse' is unknown" in out
    assert "referral    Oncologist (asked for by the reviewer)\n" in out
    assert "doctor 4    nodule\n" in out


def test_a_review_is_not_for_machines(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_is_terminal", lambda _: True)
    assert main(["consult", *QUESTION, *OPTIONS, "--review", "--json"]) == 2
    assert not clinic.loaded


def test_without_a_verdict_nothing_is_released(reviewed: Callable[..., tuple[int, str]]) -> None:
    code, out = reviewed()
    assert code == 130
    assert "review " not in out


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "out", "coloured"),
    [
        ({}, Screen(), True),
        ({"NO_COLOR": ""}, Screen(), True),  # as the convention has it
        ({"NO_COLOR": "1"}, Screen(), False),
        ({"TERM": "dumb"}, Screen(), False),
        ({}, io.StringIO(), False),
    ],
)
def test_colours_are_for_terminals(
    environment: dict[str, str], out: io.StringIO, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    referral = {"specialty": "Surgeon", "reasoning": "A photograph."}
    Terminal(out).show({"event": "referral", "by": "triage", "referral": referral})  # type: ignore[typeddict-item]
    assert ("\x1b[2mA photograph.\x1b[0m" in out.getvalue()) is coloured
    assert ("\x1b" in out.getvalue()) is coloured


def test_long_lines_keep_to_their_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    referral = {"specialty": "Surgeon", "reasoning": "word " * 20}
    Terminal(out).show({"event": "referral", "by": "triage", "referral": referral})  # type: ignore[typeddict-item]
    assert all(len(line) <= 40 for line in out.getvalue().splitlines())
    assert out.getvalue().splitlines()[2].startswith(" " * 12 + "word")


def test_a_model_cannot_write_to_the_terminal_but_text(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "fake:says=<think>\x1b[2J\x1b]0;title\x07 \x9b31m fine \u202eetiw\r</think><answer>nod\x1b[8mule</answer>"
    main(["consult", *QUESTION, "--attending", evil])
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\r\u202e")
    assert "fine" in out


def test_line_breaks_and_tabs_are_text() -> None:
    assert clean("a\r\nb\tc\x7f\u2069") == "a\nb\tc"


# --- many ---


Many = Callable[..., int]


@pytest.fixture
def consult(clinic: Clinic, tmp_path: Path) -> Many:
    """Runs `consult-many` on a file, with the results in out.jsonl."""

    def run(cases: Path, *flags: str) -> int:
        return exit_code(["consult-many", str(cases), "--out", str(tmp_path / "out.jsonl"), *flags])

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_every_case_is_one_line(consult: Many, files: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert consult(written(files / "cases.jsonl", rows("a", "b", "c"))) == 0
    assert {line["id"] for line in lines(out)} == {"a", "b", "c"}
    assert all(list(line) == ["id", *FIELDS] for line in lines(out))
    assert lines(out)[0]["decision"]["answer"] == "nodule"
    assert "What is" not in out.read_text()
    stdout, err = capsys.readouterr()
    assert stdout == ""
    assert "done=3, failed=0" in err
    assert err.endswith("3 done, 0 failed, 0 left\n")


def test_no_model_is_told_the_answer(consult: Many, clinic: Clinic, files: Path, out: Path) -> None:
    row = rows("a")[0] | {"answer": "SECRET", "answer_idx": "SECRET", "specialty": "SECRET", "messages": "SECRET"}
    assert consult(written(files / "cases.jsonl", [row])) == 0
    assert clinic.asked
    assert not any("SECRET" in words(messages) for messages in clinic.asked)
    assert "SECRET" not in out.read_text()


def test_images_are_relative_to_the_file(
    consult: Many, clinic: Clinic, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [image("lime"), image("blue")]
    frames[0].save(files / "scan.tif", save_all=True, append_images=frames[1:])
    given = [
        {"question": "One?", "image": "images/red.png"},
        {"question": "Both?", "images": ["images/blue.png", str(files / "images" / "red.png")], "image": "none.png"},
        {"question": "Frame?", "images": [{"image": "scan.tif", "frame": 0}]},
        {"question": "None?", "image": None, "images": None},
        {"question": "Null?", "image": "images/blue.png", "images": None},
        {"question": "Empty?", "image": "images/blue.png", "images": []},
    ]
    written(files / "cases.jsonl", given)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert consult(Path("../files/cases.jsonl"), "--attending", "fake:says=<answer>x</answer>") == 0
    seen = {}
    for messages in clinic.models["says=<answer>x</answer>"].seen:
        asked = next(row["question"] for row in given if row["question"] in words(messages))
        seen[asked] = [Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0)) for data in pictures(messages)]
    red, blue, lime = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    assert seen == {"One?": [red], "Both?": [blue, red], "Frame?": [lime], "None?": [], "Null?": [blue], "Empty?": []}


BAD_ROWS: list[tuple[Any, str]] = [
    ("not json", "not JSON in UTF-8 (Expecting value)"),
    ('{"question": "caf\udce9"}', "not JSON in UTF-8 (UnicodeDecodeError)"),
    ("[1]", "a case is a JSON object, not a list"),
    ("[" * 100_000, "not JSON in UTF-8 (RecursionError)"),
    ({"options": ["a", "b"]}, "question: Field required"),
    ({"question": ""}, "question: question is empty"),
    ({"question": 3}, "question: Input should be a valid string"),
    ({"question": "q", "options": "yes/no"}, "options: Input should be a valid list"),
    ({"question": "q", "options": ["a", 1]}, "options.1: Input should be a valid string"),
    ({"question": "q", "options": ["a"]}, "options: options has one entry, 'a'; give two or more"),
    ({"question": "q", "context": {}}, "context: Input should be a valid string"),
    ({"question": "q", "image": ["a.png"]}, "image: it must be a path"),
    ({"question": "q", "images": "a.png"}, "images: it must be a list of paths"),
    ({"question": "q", "images": [{"image": 1}]}, "image: it must be a path"),
    ({"question": "q", "image": "none.png"}, "none.png' is not there; images are relative to the file's folder"),
    ({"question": "q", "image": "images"}, "images' is not there"),
    ({"question": "q", "image": f"data:image/png;base64,{'A' * 5000}"}, " is not there; images are relative to"),
    ({"question": "q", "id": "a"}, "id: 'a' is there twice, first in line 1; ids must differ"),
    ({"question": "q", "id": "cases-4"}, "id: 'cases-4' is there twice, first in line 4; ids must differ"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[message for _, message in BAD_ROWS])
def test_a_bad_row_is_named_and_nothing_is_run(
    row: Any, message: str, consult: Many, clinic: Clinic, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*rows("a"), "", "  ", {"question": "No id."}, row]
    cases = written(files / "cases.jsonl", given)
    assert consult(cases) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cases: 1 rows cannot be used, and nothing was run\n")
    assert f"{cases}:5: " in err
    assert message in err
    assert not clinic.loaded
    assert not out.exists()


def test_every_repeated_id_is_traced_to_its_first_line(
    consult: Many, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert consult(written(files / "cases.jsonl", rows("a", "b", "a", "a"))) == 2
    err = capsys.readouterr().err
    assert err.count("id: 'a' is there twice, first in line 1; ids must differ") == 2


def test_all_bad_rows_are_named_up_to_a_number(consult: Many, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = written(files / "cases.jsonl", ["{}"] * (many.LISTED + 5))
    assert consult(cases) == 2
    err = capsys.readouterr().err
    assert err.count("question: Field required") == many.LISTED
    assert err.startswith(f"error: cases: {many.LISTED + 5} rows")
    assert err.endswith("and 5 more\n")


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (None, [], "cases: no file '"),
        ("", [], "cases: there is no case in '"),
        ("\n \n", [], "cases: there is no case in '"),
        ('{"question": "q", "split": "dev"}\n{"question": "q"}\n', ["--split", "test"], "it has None, dev"),
        ("", ["--concurrency", "0"], "argument --concurrency: '0' is not a whole number of 1 or more"),
        ("", ["--limit", "x"], "argument --limit: 'x' is not a whole number of 1 or more"),
        ('{"question": "q"}\n', ["--votes", "3", "--abstain-below", "7"], "abstain_below: "),
    ],
)
def test_a_file_that_cannot_be_used(
    text: str | None,
    flags: list[str],
    message: str,
    consult: Many,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases = files / "cases.jsonl"
    if text is not None:
        cases.write_text(text)
    assert consult(cases, *flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_path_that_the_system_refuses_is_bad_input(consult: Many, capsys: pytest.CaptureFixture[str]) -> None:
    assert consult(Path("a" * 300)) == 2
    assert "' (File name too long); give a JSONL file with one case a line\n" in capsys.readouterr().err


def test_an_id_is_a_text_and_by_default_the_line(consult: Many, files: Path, out: Path) -> None:
    cases = written(files / "mine.jsonl", ["", {"question": "q"}, {"question": "q", "id": 7}])
    assert consult(cases) == 0
    assert {line["id"] for line in lines(out)} == {"mine-2", "7"}


def test_split_and_limit_choose(consult: Many, files: Path, out: Path) -> None:
    given = [row | {"split": split} for row, split in zip(rows(*"abcd"), ["x", "y", "x", "x"], strict=True)]
    cases = written(files / "cases.jsonl", [*given, "not json"])  # beyond the limit nothing is looked at
    assert consult(cases, "--split", "x", "--limit", "2") == 0
    assert {line["id"] for line in lines(out)} == {"a", "c"}
    assert consult(cases, "--split", "x", "--limit", "2") == 0
    assert len(lines(out)) == 2  # the limit is of cases, not of cases a run


def test_what_is_done_is_skipped(
    consult: Many, clinic: Clinic, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = written(files / "cases.jsonl", rows(*"abcde"))
    assert consult(cases, "--limit", "2") == 0
    first = out.read_bytes()
    asked = len(clinic.asked)
    capsys.readouterr()
    assert consult(cases) == 0
    assert out.read_bytes().startswith(first)
    assert sorted(line["id"] for line in lines(out)) == list("abcde")
    assert len(clinic.asked) == asked + 3 * 5
    err = capsys.readouterr().err
    assert err.startswith(f"2 of 5 cases are skipped: they are done in {str(out)!r}\n")
    assert "5/5" in err
    assert err.endswith("5 done, 0 failed, 0 left\n")
    clinic.loaded.clear()
    assert consult(cases) == 0
    assert not clinic.loaded  # nothing to do


def sick(*ids: str) -> Callable[[Sequence[BaseMessage]], str]:
    """An attending who fails on these cases."""

    def answer(messages: Sequence[BaseMessage]) -> str:
        for each in ids:
            if f"What is {each}?" in words(messages):
                raise ConnectionError(f"lost {each}")
        return "<answer>cyst</answer>"

    return answer


def test_a_failure_is_a_line_and_is_tried_again(
    consult: Many, clinic: Clinic, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = written(files / "cases.jsonl", rows(*"abcd"))
    clinic.answer = sick("b", "d")
    assert consult(cases, "--attending", "fake:by") == 1
    failed = {line["id"]: line for line in lines(out) if "error" in line}
    assert failed == {each: {"id": each, "error": f"ConnectionError: lost {each}"} for each in "bd"}
    err = capsys.readouterr().err
    assert "done=2, failed=2" in err
    assert err.endswith("2 done, 2 failed, 0 left; the same command goes on from here\n")
    clinic.answer = sick("d")
    clinic.models["by"].seen.clear()
    assert consult(cases, "--attending", "fake:by") == 1
    assert len(clinic.models["by"].seen) == 2
    assert sorted((line["id"], "error" in line) for line in lines(out)) == [
        ("a", False),
        ("b", False),
        ("c", False),
        ("d", True),
    ]
    clinic.answer = sick()
    assert consult(cases, "--attending", "fake:by") == 0
    assert sorted(line["id"] for line in lines(out)) == list("abcd")
    assert not any("error" in line for line in lines(out))


def test_an_error_of_a_case_that_is_not_wanted_stays(consult: Many, clinic: Clinic, files: Path, out: Path) -> None:
    cases = written(files / "cases.jsonl", rows(*"abc"))
    clinic.answer = sick("a", "c")
    consult(cases, "--attending", "fake:by")
    clinic.answer = sick()
    assert consult(cases, "--attending", "fake:by", "--limit", "1") == 0
    assert sorted((line["id"], "error" in line) for line in lines(out)) == [("a", False), ("b", False), ("c", True)]


@pytest.mark.parametrize("torn", ['{"id": "c", "referral": {"spec', '{"i', "{", '{"id": "c", "referral": "心'])
def test_an_unfinished_last_line_is_dropped(torn: str, consult: Many, files: Path, out: Path) -> None:
    cases = written(files / "cases.jsonl", rows(*"abc"))
    consult(cases, "--limit", "2")
    with out.open("ab") as file:
        file.write(torn.encode()[: -1 if "心" in torn else None])
    assert consult(cases) == 0
    assert sorted(line["id"] for line in lines(out)) == list("abc")


def test_a_last_line_that_only_lacks_its_end_is_kept(consult: Many, clinic: Clinic, files: Path, out: Path) -> None:
    cases = written(files / "cases.jsonl", rows(*"abc"))
    consult(cases, "--limit", "2")
    out.write_bytes(out.read_bytes().rstrip(b"\n"))
    asked = len(clinic.asked)
    assert consult(cases) == 0
    assert sorted(line["id"] for line in lines(out)) == list("abc")
    assert len(clinic.asked) == asked + 5


def test_blank_lines_are_dropped(consult: Many, files: Path, out: Path) -> None:
    cases = written(files / "cases.jsonl", rows(*"ab"))
    consult(cases, "--limit", "1")
    out.write_text("\n" + out.read_text() + "\n")
    assert consult(cases) == 0
    assert sorted(line["id"] for line in lines(out)) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        "my notes",
        "my notes\n",
        '{"a": 1}',
        '{"id": "a", "question": "q"}\n',
        '{"id": 1, "error": "x"}\n',
        '{"id": "a", "usage": {}}\nnotes\n',
        '{"id": "a", "usage": {}}\n{"id": "b", "err\n',
    ],
)
def test_a_file_of_something_else_is_never_written_to(
    content: str, consult: Many, clinic: Clinic, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.write_text(content)
    assert consult(written(files / "cases.jsonl", rows("a", "c"))) == 2
    assert out.read_text() == content
    assert [path.name for path in out.parent.iterdir() if path.is_file()] == ["out.jsonl"]
    assert f"error: out: {out}:{content.rstrip().count(chr(10)) + 1} is no line of results" in capsys.readouterr().err
    assert not clinic.loaded


def test_the_cases_are_not_overwritten(clinic: Clinic, files: Path) -> None:
    cases = written(files / "cases.jsonl", rows("a", "b"))
    before = cases.read_bytes()
    assert main(["consult-many", str(cases), "--out", str(cases)]) == 2
    assert cases.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "error: --out: cannot use '{}' (Is a directory); give a JSONL file\n"),
        ("file.txt/out.jsonl", "error: --out: cannot use '{}' (File exists); give a JSONL file\n"),
    ],
)
def test_a_place_that_cannot_be_written_to(
    place: str, message: str, clinic: Clinic, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "folder").mkdir()
    (files / "file.txt").write_text("")
    cases = written(files / "cases.jsonl", rows("a"))
    assert main(["consult-many", str(cases), "--out", str(files / place)]) == 2
    assert capsys.readouterr().err == message.format(files / place)


def test_a_folder_for_the_results_is_made(clinic: Clinic, files: Path) -> None:
    cases = written(files / "cases.jsonl", rows("a"))
    assert main(["consult-many", str(cases), "--out", str(files / "new" / "dir" / "out.jsonl")]) == 0
    assert len(lines(files / "new" / "dir" / "out.jsonl")) == 1


def test_a_link_to_the_results_stays_one(consult: Many, files: Path, out: Path) -> None:
    real = files / "real.jsonl"
    real.write_text('{"id": "a", "error": "x"}\n')
    out.symlink_to(real)
    assert consult(written(files / "cases.jsonl", rows("a"))) == 0
    assert out.is_symlink()
    assert [("error" in line) for line in lines(real)] == [False]


@pytest.mark.parametrize("content", ["", '{"id": "a", "error": "x"}\n'])
def test_two_runs_do_not_write_to_one_file(
    content: str, consult: Many, clinic: Clinic, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fcntl")
    out.write_text(content)
    other = Results(out, {"a"})  # where there is an error to be tried again, the file is a new one by now
    cases = written(files / "cases.jsonl", rows("a"))
    assert consult(cases) == 2
    assert "out: another run is writing to" in capsys.readouterr().err
    other.keep({"id": "a", "usage": {}})
    other.close()
    assert lines(out) == [{"id": "a", "usage": {}}]
    assert not clinic.loaded


def test_a_file_that_was_replaced_meanwhile_is_not_written_to(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    out.write_text("")

    def replaced(*_: Any) -> None:
        (out.parent / "new").write_text("")
        (out.parent / "new").replace(out)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(ValueError, match="another run is writing"):
        Results(out, set())


def test_a_file_system_without_locks_will_do(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    results = Results(out, set())
    results.keep({"id": "a", "usage": {}})
    results.close()
    assert len(lines(out)) == 1


def test_a_line_is_out_of_the_process_at_once(out: Path) -> None:
    results = Results(out, set())
    results.keep({"id": "a", "usage": {}})
    assert lines(out) == [{"id": "a", "usage": {}}]
    results.close()


def test_a_full_disk_is_told_and_what_is_done_is_kept(
    consult: Many, files: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = Results.keep

    def full(results: Results, line: dict[str, Any]) -> None:
        if out.stat().st_size:
            raise OSError(28, "No space left on device")
        keep(results, line)

    monkeypatch.setattr(Results, "keep", full)
    assert consult(written(files / "cases.jsonl", rows(*"abc"))) == 1
    err = capsys.readouterr().err
    assert err.endswith(
        "1 done, 0 failed, 2 left; the same command goes on from here\n"
        "error: OSError: [Errno 28] No space left on device\n"
    )
    assert len(lines(out)) == 1


def test_unicode_stays_what_it_is(consult: Many, clinic: Clinic, files: Path, out: Path) -> None:
    ids = ["患者 1", "a\u2028b", "é", "e\u0301", "\U0001fac1"]
    answer = "lésion\u2028 心臓"
    row = {"id": "half \ud83e", "question": "q?", "options": None}
    given = [{"id": each, "question": "どこ?", "options": [answer, "other"]} for each in ids]
    cases = written(files / "cases.jsonl", given)
    with cases.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")  # as an escape: it is no character of UTF-8
    cases.write_bytes(b"\xef\xbb\xbf" + cases.read_bytes().replace(b"\n", b"\r\n"))  # as Windows writes it
    assert consult(cases, "--attending", f"fake:says=<answer>{answer}</answer>") == 0
    assert [line["id"] for line in lines(out)] != []
    assert {line["id"] for line in lines(out)} == {*ids, "half \ud83e"}
    assert "患者 1".encode() in out.read_bytes()
    assert any(line["decision"]["answer"] == answer for line in lines(out))
    before = out.read_bytes()
    assert consult(cases) == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize("retries", ["0", "1"])
def test_nothing_of_a_case_is_logged(
    retries: str,
    consult: Many,
    clinic: Clinic,
    files: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    clinic.answer = sick("bed 7")
    consult(written(files / "cases.jsonl", rows("bed 7", "bed 8")), "--attending", "fake:by", "--retries", retries)
    said = "".join(capsys.readouterr()) + caplog.text
    assert "1 done, 1 failed" in said
    assert said.count("a node is tried again after ConnectionError") == int(retries)
    assert not any(word in said for word in ("bed", "nodule", "cyst", "lost", "What is"))


class Counting:
    """Graph and cases at once: knows how many consultations are under way, and how many cases were read."""

    def __init__(self, cases: int) -> None:
        self.cases, self.read, self.ended = cases, 0, 0
        self.now = self.most = self.ahead = 0

    def patients(self) -> Iterator[many.Patient]:
        for number in range(self.cases):
            self.read += 1
            self.ahead = max(self.ahead, self.read - self.ended)
            yield many.Patient(str(number), many.Case(question="q"))

    async def ainvoke(self, _: Any) -> dict[str, Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        self.ended += 1
        return dict.fromkeys(FIELDS)


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_so_many_at_a_time_and_no_more(concurrency: int) -> None:
    counting, kept = Counting(40), list[Any]()
    asyncio.run(consult_many(counting, counting.patients(), kept.append, concurrency))  # type: ignore[arg-type]
    assert sorted(int(line["id"]) for line in kept) == list(range(40))
    assert counting.most == counting.ahead == min(concurrency, 40)


def test_the_flag_bounds_the_consultations(consult: Many, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    async def fake(graph: Any, patients: Iterator[Any], keep: Any, concurrency: int) -> None:
        given.append(concurrency)

    monkeypatch.setattr(cli, "consult_many", fake)
    cases = written(files / "cases.jsonl", rows("a"))
    assert [consult(cases), consult(cases, "--concurrency", "3")] == [1, 1]  # what is left is no success
    assert given == [8, 3]


def test_a_line_comes_as_soon_as_its_case_ends() -> None:
    """One case that never ends holds up nobody."""
    kept: list[str] = []

    class Graph:
        async def ainvoke(self, case: Any) -> dict[str, Any]:
            if case.question == "0":
                while len(kept) < 9:
                    await asyncio.sleep(0)
            return dict.fromkeys(FIELDS)

    patients = (many.Patient(str(number), many.Case(question=str(number))) for number in range(10))
    keep = lambda line: kept.append(line["id"])  # noqa: E731
    asyncio.run(asyncio.wait_for(consult_many(Graph(), patients, keep, 2), 10))  # type: ignore[arg-type]
    assert kept == [*map(str, range(1, 10)), "0"]


def test_a_file_is_checked_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    cases = tmp_path / "cases.jsonl"
    with cases.open("w") as file:
        for _ in range(2000):
            file.write(json.dumps({"question": "q" * 10_000}) + "\n")
    tracemalloc.start()
    ids = check_cases(cases)
    reader = read_cases(cases)
    next(reader)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == 2000
    assert most < 4_000_000  # the file has 20


def test_a_file_that_changes_after_the_check_is_bad_input(
    consult: Many, clinic: Clinic, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = written(files / "cases.jsonl", rows("a"))
    check = cli.check_cases

    def changed(*given: Any) -> Any:
        ids = check(*given)
        cases.write_text("gone")
        return ids

    monkeypatch.setattr(cli, "check_cases", changed)
    assert consult(cases) == 2
    assert capsys.readouterr().err.endswith(f"error: {cases}:1: not JSON in UTF-8 (Expecting value)\n")


def test_it_runs_in_a_thread_that_takes_no_signals(clinic: Clinic) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["consult", *QUESTION, *OPTIONS])))
    thread.start()
    thread.join()
    assert codes == [0]
