"""Expert traces from end to end: the clinic's cases, a teacher over HTTP, kills, ceilings, shards; and real data."""

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from datasets import load_dataset

from mmedagent_graph.images import ImageStore
from rl.build_traces import chosen, main, parser
from rl.clinic.cases import read_key
from rl.data_card import Making
from rl.expert_traces import read_expert_traces
from rl.guidelines import read_guideline
from tests.stub_server import INPUT_TOKENS, OUTPUT_TOKENS, StubServer

VQA_RAD = Path(__file__).parents[3] / "shared" / "data" / "vqa_rad" / "cases.jsonl"
CASES, SAMPLES = 12, 2
CALLS = CASES * SAMPLES * 4


def key_of(messages):
    """The key in the image of a request, which no model can see."""
    user = messages[-1]["content"]
    url = next(block["image_url"]["url"] for block in user if block["type"] == "image_url")
    return read_key(base64.b64decode(url.split(",", 1)[1]))


def knows(messages, _):
    """A teacher that is right where the image is clear, and says from where it reasons."""
    key, system = key_of(messages), messages[0]["content"]
    told = read_guideline().perspectives
    way = next(name for name, perspective in told.items() if perspective.prompt in system)
    finding = key.finding if key.clear else key.lure
    return f"<think>As a {way} reader, a typical {finding}.</think><answer>{finding}</answer>"


def flags(out, *more):
    given = ["--teacher", "vllm:teacher", "--cases", "clinic", "--size", CASES, "--samples", SAMPLES, "--out", out]
    return list(map(str, [*given, "--exclude", "clinic", "--concurrency", 2, *more]))


@pytest.fixture
def teacher(monkeypatch):
    with StubServer(knows) as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        yield server


def test_the_clinics_cases_become_a_data_set(teacher, tmp_path):
    making = main(flags(tmp_path / "out", "--holdout", 0.5))
    assert teacher.calls["teacher"] == CALLS
    clear = sum(key_of(request.messages).clear for request in teacher.requests)
    assert 0 < clear < CALLS
    assert making.dropped == {"wrong": CALLS - clear, "said twice": clear // 2}  # both samples say the same
    assert len(making.traces) == clear // 2
    store = ImageStore(tmp_path / "images")
    traces = [trace for split in making.splits for trace in read_expert_traces(tmp_path / "out", split, store)]
    for trace in traces:
        key = read_key(store.get(trace.images[0]))
        assert (trace.answer, trace.specialty) == (key.finding, key.specialty)
        assert f"As a {trace.perspective} reader" in trace.reasoning
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in loaded.items()} == {
        name: len(part) for name, part in making.splits.items()
    }
    assert loaded["train"][0]["images"][0].size == store.open(traces[0].images[0]).size


def answered(out):
    """How many answers are in the cache of a run that has ended."""
    path = next((out / "making").glob("answers*.db"), None)
    if path is None:
        return 0
    with closing(sqlite3.connect(path)) as known:
        return known.execute("select count(*) from cache").fetchone()[0]


def test_a_kill_repeats_no_finished_call(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with StubServer(knows, latency=0.3) as server:
        environment = os.environ | {"VLLM_BASE_URL": server.url, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "rl.build_traces", *flags(out)]
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while sum(request.finished is not None for request in server.requests) < CALLS // 3 and run.poll() is None:
            time.sleep(0.01)
        assert run.poll() is None
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        before, kept = len(server.requests), answered(out)
        assert kept > 0
        assert before - kept <= 2 * 2 * SAMPLES * 4  # no more than were under way, or had just been answered
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(server.requests) - before == CALLS - kept
        assert answered(out) == CALLS
    with StubServer(knows) as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        whole = main(flags(tmp_path / "whole"))
    store = ImageStore(tmp_path / "images")
    for split, traces in whole.splits.items():
        assert (list(read_expert_traces(out, split, store)) if traces else []) == traces


def test_a_ceiling_ends_it_and_a_larger_one_goes_on(teacher, tmp_path, capsys):
    prices = tmp_path / "prices.yaml"
    prices.write_text("teacher: [1.0, 2.0]\n")
    case = SAMPLES * 4 * (INPUT_TOKENS * 1.0 + OUTPUT_TOKENS * 2.0) / 1e6
    more = ("--prices", prices, "--concurrency", 1, "--max_dollars")
    making = main(flags(tmp_path / "out", *more, 2.5 * case))
    assert teacher.calls["teacher"] == 3 * SAMPLES * 4
    assert making.left == CASES - 3
    said = capsys.readouterr().out
    assert "9 cases are still to be asked" in said
    assert "a larger --max_dollars goes on from here" in said
    assert "9 are still to be asked" in (tmp_path / "out" / "README.md").read_text()
    making = main(flags(tmp_path / "out", *more, 100 * case))
    assert (teacher.calls["teacher"], making.left) == (CALLS, 0)


def test_two_shards_are_one_data_set(teacher, tmp_path):
    first = main(flags(tmp_path / "out", "--shard", "0/2"))
    asked = teacher.calls["teacher"]
    assert first.left == CASES - asked // (SAMPLES * 4) > 0
    second = main(flags(tmp_path / "out", "--shard", "1/2"))
    assert (teacher.calls["teacher"], second.left) == (CALLS, 0)
    assert {trace.case for trace in first.traces} < {trace.case for trace in second.traces}
    assert main(flags(tmp_path / "whole")).traces == second.traces


def test_vqa_rads_train_split_shares_images_with_its_test_split(tmp_path):
    if not VQA_RAD.is_file():
        pytest.skip(f"NOT TESTED: no real data at {VQA_RAD}")
    rows = [json.loads(line) for line in VQA_RAD.read_text(encoding="utf-8").splitlines()]
    tested = {row["image_sha256"] for row in rows if row["split"] == "test"}
    train = [row for row in rows if row["split"] == "train" and row["options"]]
    shared = [row["id"] for row in train if row["image_sha256"] in tested]
    assert len(shared) > 400
    exam = f"{VQA_RAD}@test"
    where = ["--teacher", "vllm:teacher", "--cases", str(VQA_RAD), "--split", "train", "--out", str(tmp_path)]
    making = Making(given := parser().parse_args([*where, "--specialty", "Radiologist", "--exclude", exam]))
    left = {seen.case.id for seen in chosen(given, ImageStore(tmp_path / "images"), making)}
    assert making.left_out[f"its image is in {exam}"] == len(shared)
    assert not left & set(shared)
    assert len(left) + making.left_out.total() == sum(row["split"] == "train" for row in rows)
    assert making.left_out["it repeats another case"] < 100 < len(left)
    print(making.left_out, len(left))
