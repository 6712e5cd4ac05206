"""Every snippet of the README runs, every command in it exists, and every example works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.partition("  #")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip()
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_nothing_was_left_to_fill_in():
    assert not re.findall(r"\b(?:RESULTS|VQARAD|TODO|TBD|XXX)\b", README)


def test_there_are_snippets_and_commands():
    assert len(SNIPPETS) >= 3
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.strip().splitlines()[-1][:40])
def test_a_snippet_runs(snippet: str, tmp_path: Path):
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=tmp_path, env=ENVIRONMENT)


def flags_by_command() -> dict[tuple[str, ...], set[str]]:
    """The flags that the README gives to each `python -m` command."""
    flags: dict[tuple[str, ...], set[str]] = {}
    for words in map(shlex.split, COMMANDS):
        if "-m" in words:
            named = words[words.index("-m") + 1 :]
            given = [word for word in named if word.startswith("--")]
            command = named[:2] if named[0] == "mmedagent_graph" else named[:1]
            flags.setdefault(tuple(command), set()).update(given)
    return flags


@pytest.mark.parametrize(("command", "flags"), flags_by_command().items(), ids=lambda value: " ".join(sorted(value)))
def test_a_command_takes_the_flags_that_the_readme_gives_it(command: tuple[str, ...], flags: set[str]):
    usage = subprocess.run(
        [sys.executable, "-m", *command, "--help"], check=True, capture_output=True, text=True, env=ENVIRONMENT
    ).stdout
    missing = {flag for flag in flags - {"--config"} if not re.search(rf"{flag}\b", usage)}
    assert not missing


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if c.startswith("make ")}))
def test_a_make_target_exists(command: str):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("file", sorted(set(re.findall(r"(?:benchmarks|examples|rl/configs)/[\w./-]+\w", README))))
def test_a_file_that_the_readme_names_exists(file: str):
    assert (ROOT / file).exists()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs(example: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(example)], check=True, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert "decision" in done.stdout


@pytest.mark.parametrize("benchmark", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_a_benchmark_can_be_started_from_anywhere(benchmark: Path, tmp_path: Path):
    command = [sys.executable, str(benchmark), "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.stdout.startswith(f"usage: {benchmark.name}")
