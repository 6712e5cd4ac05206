"""The command line as a process of its own: the real clinic, real signals, a real terminal."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmedagent_graph.images import ImageStore
from rl.clinic.cases import make_cases
from rl.datasets import read_cases

ROOT = Path(__file__).parents[2]
VQA_RAD = ROOT.parent / "shared" / "data" / "vqa_rad" / "cases.jsonl"
COMMAND = [sys.executable, "-m", "mmedagent_graph"]
FIELDS = ["referral", "opinions", "decision", "usage"]
PATIENCE = 120
QUICK = """
import asyncio, itertools, sys
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.language_models import BaseChatModel
from mmedagent_graph import cli, models

class Quick(BaseChatModel):
    name: str
    _llm_type = "quick"

    def _generate(self, messages, stop=None, run_manager=None, **_):
        text = "<think>" + "word " * 50_000 * (self.name == "long") + f"</think><answer>{self.name}</answer>"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **_):
        hangs = self.name == "slow" or (self.name == "tired" and next(calls) >= 5)
        await asyncio.sleep(3600 if hangs else 0)
        return self._generate(messages)

calls = itertools.count()
models.BUILT_IN["quick"] = lambda name: Quick(name=name)
sys.exit(cli.main())
"""
"""The command line with models that need no torch: `quick:cyst` answers cyst, and long at length; slow never answers,
and tired only five times."""
NOBODY = ["--triage", "quick:Surgeon", "--specialists", "quick:cyst", "--attending"]


@pytest.fixture(autouse=True)
def signals_are_heard() -> Iterator[None]:
    """Tests in the background of a script, or under nohup, ignore some, and so would the processes that they start."""
    given = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in given.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nobody is named, and temporary files go to a folder that can be looked at."""
    (tmp_path / "tmp").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MMEDAGENT", "LANG"))}
    return clean | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path / "tmp"),
        "COLUMNS": "100",
    }


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[[], list[str]]:
    """The images that a process has left in its temporary folder."""
    return lambda: [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("mmedagent")]


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command to its end, from a folder that has nothing to do with its files."""

    def finished(*arguments: Any, command: Sequence[str] = COMMAND, **more: Any) -> subprocess.CompletedProcess[str]:
        given = {"cwd": tmp_path / "tmp", "env": environment, "stdin": subprocess.DEVNULL} | more
        return subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=PATIENCE, **given
        )

    return finished


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases of the clinic in a file, their images beside it."""
    folder = tmp_path_factory.mktemp("clinic")
    store = ImageStore(folder / "images")
    with (folder / "cases.jsonl").open("w") as file:
        for case in make_cases(20, 7, store):
            row = {"id": case.id, "question": case.question, "options": case.options or None, "answer": case.answer}
            file.write(json.dumps(row | {"image": f"images/{store.path(case.images[0]).name}"}) + "\n")
    return folder / "cases.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def one_case(cases: Path, number: int = 1) -> list[str]:
    """The flags of a case; number 1 has options."""
    case = read_cases(cases)[number]
    options = [word for option in case.options for word in ("--option", option)]
    return ["--question", case.question, *options, "--image", str(case.images[0])]


def test_a_consultation_with_the_clinic(run, cases, left_behind):
    done = run("consult", *one_case(cases))
    assert done.returncode == 0, done.stderr
    printed = [line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert printed[0][0] == "referral"
    assert sorted(line.split()[1] for line in done.stdout.splitlines() if line.startswith("doctor")) == ["1", "2", "3"]
    assert [label for label, _ in printed[-3:]] == ["decision", "agreement", "usage"]
    assert printed[-3][1] in read_cases(cases)[1].options
    assert "\x1b" not in done.stdout
    assert not left_behind()


def test_json_with_the_clinic_is_what_the_graph_says(run, cases):
    from mmedagent_graph.defaults import default_graph

    flags = one_case(cases)
    done = run("consult", *flags, "--json", "--votes", "3")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    case = read_cases(cases)[1]
    given = {"question": case.question, "options": case.options, "images": case.images}
    said = default_graph(votes=3).invoke(given)
    assert list(result) == FIELDS
    assert result["opinions"] == said["opinions"]
    assert result["referral"]["specialty"] == said["referral"]["specialty"]
    assert result["decision"]["votes"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["consult", "--question", "q?", "--image", "none.png"], "images[0]: cannot read 'none.png'"),
        (["consult-many", "none.jsonl", "--out", "o.jsonl"], "cases: no file 'none.jsonl'"),
    ],
)
def test_bad_input_is_told_at_once(flags, message, run):
    done = run(*flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_closed_stdin_is_no_terminal(run, cases):
    quick = ["consult", "--question", "q?", *NOBODY, "quick:cyst"]
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", QUICK]
    assert run(*quick, command=shell).returncode == 0
    assert run(*quick, "--review", command=shell).returncode == 2


def test_closed_outputs(run, tmp_path):
    quick = [sys.executable, "-c", QUICK]
    without_stdout, without_stderr = (["sh", "-c", f'exec "$@" {closed}', "sh", *quick] for closed in (">&-", "2>&-"))
    for flags in ([], ["--json"]):
        done = run("consult", "--question", "q?", *NOBODY, "quick:cyst", *flags, command=without_stdout)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "stdout is closed" in done.stderr
    (tmp_path / "cases.jsonl").write_text('{"question": "q?"}\n')
    many = ["consult-many", tmp_path / "cases.jsonl", "--out", tmp_path / "out.jsonl", *NOBODY, "quick:cyst"]
    done = run(*many, command=without_stderr)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(lines(tmp_path / "out.jsonl")) == 1


def test_a_reader_that_has_enough_is_no_traceback(run):
    shell = ["sh", "-c", '"$@" | head -c 1; echo', "sh", sys.executable, "-c", QUICK]
    done = run("consult", "--question", "q?", *NOBODY, "quick:long", command=shell)
    assert done.stderr == ""
    assert done.stdout == "r\n"


@pytest.fixture
def two_cases(tmp_path):
    """The flags of a run on two cases, but for its output, with models that answer at once."""
    (tmp_path / "cases.jsonl").write_text('{"question": "one?"}\n{"question": "two?"}\n')
    return ["consult-many", tmp_path / "cases.jsonl", *NOBODY, "quick:cyst"]  # the attending is the last


@pytest.mark.parametrize(
    ("out", "code", "printed", "message"),
    [
        ("/dev/null", 0, 0, "2 done, 0 failed, 0 left\n"),
        ("/dev/full", 1, 0, "0 done, 0 failed, 2 left\nerror: OSError: [Errno 28] No space left on device\n"),
        ("/dev/stdout", 0, 2, "2 done, 0 failed, 0 left\n"),
    ],
)
def test_what_is_no_file_is_only_written_to(out, code, printed, message, run, two_cases):
    shell = ["sh", "-c", 'ulimit -v 4000000; exec "$@"', "sh", sys.executable, "-c", QUICK]  # should it read for ever
    done = run(*two_cases, "--out", out, command=shell)
    assert (done.returncode, len([json.loads(line) for line in done.stdout.splitlines()])) == (code, printed)
    assert done.stderr.endswith(message)


@pytest.mark.parametrize(("reader", "stdout", "code"), [("cat", "", 0), ("head -c 6", ">&-", 141)])
def test_results_go_through_a_pipe(reader, stdout, code, run, two_cases, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    # long: more than a pipe holds, so that the reader is gone before all is written
    many = [*two_cases[:-1], "quick:long", "--out", tmp_path / "pipe"]
    shell = ["sh", "-c", f'timeout {PATIENCE} {reader} "$0" & "$@" {stdout}; code=$?; wait; exit $code']
    done = run(*many, command=[*shell, str(tmp_path / "pipe"), sys.executable, "-c", QUICK])
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert done.stdout.startswith('{"id"')
    assert code or len([json.loads(line) for line in done.stdout.splitlines()]) == 2


def test_any_output_encoding_will_do(run, environment):
    quick = ["consult", "--question", "q?", *NOBODY, "quick:心臓"]
    done = run(*quick, command=[sys.executable, "-c", QUICK], env=environment | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "decision    \\u5fc3\\u81d3\n" in done.stdout
    done = run(*quick, "--json", command=[sys.executable, "-c", QUICK], env=environment | {"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)["decision"]["answer"] == "心臓"


def test_many_with_the_clinic_from_anywhere(run, cases, tmp_path, left_behind):
    relative = os.path.relpath(cases, tmp_path / "tmp")
    done = run("consult-many", relative, "--out", "../results/out.jsonl", "--limit", "12", "--concurrency", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = lines(tmp_path / "results" / "out.jsonl")
    assert all(list(line) == ["id", *FIELDS] for line in found)
    assert sorted(line["id"] for line in found) == sorted(case.id for case in read_cases(cases)[:12])
    assert all(opinion["error"] is None for line in found for opinion in line["opinions"])  # the images got there
    assert not left_behind()
    again = run("consult-many", cases, "--out", tmp_path / "results" / "out.jsonl", "--limit", "12")
    assert again.returncode == 0
    assert again.stderr.startswith("12 of 12 cases are skipped")


@contextlib.contextmanager
def started(arguments: Sequence[Any], environment: dict[str, str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, ended with the test if not before."""
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    with subprocess.Popen([*map(str, arguments)], env=environment, encoding="utf-8", **given) as process:
        try:
            yield process
        finally:
            process.kill()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_run_goes_on(run, cases, environment, tmp_path):
    out = tmp_path / "out.jsonl"
    many = [sys.executable, "-c", QUICK, "consult-many", cases, "--out", out, *NOBODY]
    with started([*many, "quick:tired"], environment) as process:
        until(lambda: count(out) >= 5)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = out.read_bytes()
    assert before.count(b"\n") == 5
    out.write_bytes(before + b'{"id": "clinic-7-5", "referral": {"spec')
    finished = run(command=[*map(str, many), "quick:cyst"])
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.startswith("5 of 20 cases are skipped")
    assert out.read_bytes().startswith(before)
    assert sorted(line["id"] for line in lines(out)) == sorted(case.id for case in read_cases(cases))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_keeps_what_is_done(number, code, cases, environment, tmp_path, left_behind):
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", QUICK, "consult-many", cases, "--out", out, *NOBODY, "quick:tired"]
    with started(command, environment) as process:
        until(lambda: count(out) >= 5)
        assert left_behind()
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "Traceback" not in err
    assert len(lines(out)) == 5
    assert err.endswith("5 done, 0 failed, 15 left; the same command goes on from here\n")
    assert not left_behind()


@pytest.mark.parametrize(
    ("number", "code", "ignored"),
    [
        (signal.SIGINT, 130, False),
        (signal.SIGTERM, 143, False),
        (signal.SIGHUP, 129, False),
        (signal.SIGTERM, 143, True),  # where Ctrl-C is ignored, as in the background of a script
    ],
)
def test_a_stopped_consultation_leaves_no_image(number, code, ignored, cases, environment, left_behind):
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if ignored else []
    command = [*shell, sys.executable, "-c", QUICK, "consult", *one_case(cases), *NOBODY, "quick:slow"]
    with started(command, environment) as process:
        said = [process.stdout.readline() for _ in range(4)]  # the attending is being asked
        assert said[0] == "referral    Surgeon\n"
        assert left_behind()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (code, "", "")
    assert not left_behind()


class Screen:
    """A process on a terminal of its own."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-c", QUICK, *arguments], environment)

    def wait_for(self, text: str) -> None:
        """Until this has been printed; what came before is forgotten."""
        while text not in self.seen:
            assert self._printed(PATIENCE), f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def _printed(self, seconds: float) -> bool:
        return bool(select.select([self.fd], [], [], seconds)[0])

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self, key: str = "") -> int:
        """Type a key, and read to the end; the exit code. Again, if need be: `input` misses what comes as it begins."""
        self.type(key)
        with contextlib.suppress(OSError):
            while True:
                if self._printed(5):
                    self.seen += os.read(self.fd, 4096).decode()
                else:
                    self.type(key)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Take the terminal away, whatever still runs on it."""
        os.close(self.fd)


@pytest.fixture
def review(environment):
    """Starts a consultation with a review on a terminal."""
    with contextlib.ExitStack() as screens:

        def start(**more: str) -> Screen:
            return screens.enter_context(contextlib.closing(Screen(REVIEW, environment | more)))

        yield start


REVIEW = ["consult", "--question", "q?", "--option", "cyst", "--option", "scar", *NOBODY, "quick:cyst", "--review"]


def test_a_review_on_a_terminal(review):
    screen = review(TERM="xterm")
    screen.wait_for("decision    \x1b[1;32mcyst\x1b[0m")
    screen.wait_for("approve, change or hear (a specialist)? ")
    screen.type("h\n")
    screen.wait_for("specialty: ")
    screen.type("Oncologist\n")
    screen.wait_for("doctor 4")
    screen.wait_for("approve, change or hear (a specialist)? ")
    screen.type("c\n")
    screen.wait_for("answer: ")
    screen.type("b\n")
    screen.wait_for("reasoning: ")
    screen.type("Old.\n")
    screen.wait_for("decision    \x1b[1;32mscar\x1b[0m")
    assert screen.end() == 0


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_a_review_is_left_at_once(key, review, left_behind):
    screen = review(NO_COLOR="1")
    screen.wait_for("decision    cyst")
    screen.wait_for("specialist)? ")
    assert screen.end(key) == 130
    assert "Traceback" not in screen.seen
    assert "review" not in screen.seen
    assert not left_behind()


def test_a_missing_clinic_says_what_to_install(run, environment, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    done = run("consult", "--question", "q?", env=environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert done.returncode == 2
    assert "the clinic that answers by default is not installed; pip install 'mmedagent-graph[rl]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_torch_is_not_needed_for_other_models(run, environment):
    quick = [
        sys.executable,
        "-c",
        QUICK.replace("sys.exit(cli.main())", "cli.main(); sys.exit('torch' in sys.modules)"),
    ]
    assert run("consult", "--question", "q?", *NOBODY, "quick:cyst", command=quick).returncode == 0


@pytest.mark.skipif(not VQA_RAD.exists(), reason=f"THE REAL DATA ARE NOT THERE: {VQA_RAD}")
def test_real_cases_run_through(run, tmp_path):
    """Twenty questions of VQA-RAD. The clinic's model has never seen such images, and still it comes to an end."""
    out = tmp_path / "out.jsonl"
    flags = ["--split", "test", "--limit", "20", "--specialists", "clinic:base"]
    done = run("consult-many", VQA_RAD, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in VQA_RAD.read_text(encoding="utf-8").splitlines()]
    wanted = [row["id"] for row in rows if row["split"] == "test"][:20]
    assert sorted(line["id"] for line in lines(out)) == sorted(wanted)
    assert all(line["usage"]["attending"]["calls"] == 1 for line in lines(out))
    assert all(line["usage"]["attending"]["input_tokens"] > 0 for line in lines(out))
