"""A hospital on one base behind a real vLLM, beside the same hospital in process: every doctor is an adapter."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from mmedagent_graph import SPECIALTIES, build_graph
from mmedagent_graph.hospital import open_hospital, slug
from mmedagent_graph.models import load_model, vllm_model
from rl.chat import tokenize
from rl.evaluate import main as evaluate
from rl.models import BASE, Start
from rl.policy import GREEDY, load_policy
from rl.serve import serving
from tests.integration.servers.vllm_server import served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]  # the first of them starts the server
AT_ONCE = 64
DOCTORS = ["base", "triage", "attending", *map(slug, list(SPECIALTIES)[:3])]
"""Those whose weights differ; the others are the base."""
FIELDS = "usage", "referral", "opinions", "decision"


@pytest.fixture(autouse=True)
def log(server):
    before = server.log.stat().st_size
    yield
    print(server.log.read_bytes()[before:].decode(errors="replace"))  # pytest shows it where the test failed


@pytest.fixture(scope="module")
def prompts(rollout, upstream):
    return [rollout.prompt(trace) for trace in upstream[:8]]


@pytest.fixture(scope="module")
def patients(cases):
    return [{"question": case.question, "options": case.options, "images": case.images} for case in cases[:AT_ONCE]]


def in_process(hospital, name):
    """The policy of a doctor."""
    house = open_hospital(hospital)
    return load_model(str(house.base) if name == "base" else house.doctors[name])


def ids(messages):
    return [message.response_metadata["token_ids"] for message in messages]


def test_everybody_is_served_by_name(server, hospital):
    house = open_hospital(server.url)
    assert set(house.doctors) == {"base", "triage", "attending", *map(slug, SPECIALTIES)}
    assert house.specialties == open_hospital(hospital).specialties == tuple(SPECIALTIES)


def test_adapters_answer_each_in_its_own_way(server, prompts):
    said = {name: str(ids(vllm_model(name, server.url).batch(prompts))) for name in DOCTORS}
    assert len(set(said.values())) == len(DOCTORS)
    who_is_the_base = slug(list(SPECIALTIES)[-1])
    assert str(ids(vllm_model(who_is_the_base, server.url).batch(prompts))) == said["base"]


@pytest.mark.parametrize("name", DOCTORS)
def test_tokens_and_log_probabilities_are_those_in_process(server, hospital, prompts, name):
    """Images included; in float32 within 1e-3, as of the base alone."""
    policy = in_process(hospital, name)
    there = vllm_model(name, server.url).bind(logprobs=True).batch(prompts)
    here = policy.batch(prompts)
    for prompt, one, other in zip(prompts, there, here, strict=True):
        for field in ("prompt_token_ids", "token_ids", "finish_reason"):
            assert one.response_metadata[field] == other.response_metadata[field]
        told = [token["logprob"] for token in one.response_metadata["logprobs"]["content"]]
        known = logprobs_of(policy, prompt)
        torch.testing.assert_close(torch.tensor(told[: len(known)]), known, atol=1e-3, rtol=0)


def logprobs_of(policy, prompt):
    """Of the tokens of a policy's greedy answer."""
    inputs = tokenize(policy.processor, [prompt])
    with policy._shared.under([policy.adapter]) as generate, torch.inference_mode():
        options = {"max_new_tokens": 24, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
        told = generate(**inputs, **options)
    said = told.sequences[0, inputs["input_ids"].shape[1] :]
    return torch.cat(told.logits).log_softmax(-1)[range(len(said)), said]


async def test_64_consultations_at_once_end_as_in_process(server, hospital, patients, images):
    """Word for word, and as many tokens; every doctor is asked once, and decodes greedily."""
    there, here = (build_graph(hospital=where, doctors=1, images=images) for where in (server.url, hospital))
    served, local = [await graph.abatch(patients, {"max_concurrency": AT_ONCE}) for graph in (there, here)]
    for field in FIELDS:
        assert [result[field] for result in served] == [result[field] for result in local]
    assert not [opinion["error"] for result in served for opinion in result["opinions"] if opinion["error"]]
    assert len({result["referral"]["specialty"] for result in served}) > 3  # so that several adapters were asked
    assert len({result["decision"]["answer"] for result in served}) > 2


async def test_three_doctors_with_one_adapter_are_three_samples(server, patients, images):
    graph = build_graph(hospital=server.url, images=images)
    results = await graph.abatch(patients[:16], {"max_concurrency": AT_ONCE})
    heard = [{opinion["reasoning"] + str(opinion["answer"]) for opinion in result["opinions"]} for result in results]
    assert all(len(result["opinions"]) == 3 for result in results)
    assert max(map(len, heard)) > 1


def test_one_doctor_can_be_swapped(server, patients, images):
    mute = {"Oncologist": lambda _: {"answer": None, "reasoning": "of ones own"}}
    graph = build_graph(hospital=server.url, specialists=mute, doctors=1, images=images)
    heard = [opinion for patient in patients[:24] for opinion in graph.invoke(patient)["opinions"]]
    swapped = [opinion for opinion in heard if opinion["specialty"] == "Oncologist"]
    assert {opinion["reasoning"] for opinion in swapped} == {"of ones own"}
    assert "of ones own" not in {opinion["reasoning"] for opinion in heard if opinion not in swapped}


def test_an_adapter_that_is_loaded_anew_after_a_training_step_answers_as_the_new_one(
    server, hospital, prompts, tmp_path
):
    """Under the same name, while the server runs, and whatever it has kept of prompts that it has seen."""
    name = DOCTORS[-1]
    first = hospital / name
    folder = shutil.copytree(first, tmp_path / name)
    model = vllm_model(name, server.url)
    before = ids(model.batch(prompts))
    training_step(folder, prompts)
    assert ids(model.batch(prompts)) == before  # until it is told
    load(server, name, folder, load_inplace=True)
    try:
        after = ids(model.batch(prompts))
    finally:
        load(server, name, first, load_inplace=True)
    assert after == ids(load_policy(str(folder)).batch(prompts))
    assert after != before == ids(model.batch(prompts))


def load(server, name, folder, **options):
    """Let a running server load an adapter."""
    asked = urllib.request.Request(
        f"{server.url}/load_lora_adapter",
        json.dumps({"lora_name": name, "lora_path": str(folder), **options}).encode(),
        {"Content-Type": "application/json"},
    )
    assert urllib.request.urlopen(asked, timeout=60).status == 200


def training_step(folder, prompts):
    """One step of supervised learning on an adapter: it shall answer `normal`."""
    start = Start(str(folder), settings=Settings())
    model, _ = start.trainable(None)
    processor = load_policy(str(BASE)).processor
    inputs = tokenize(processor, prompts)
    answer = torch.tensor([processor.tokenizer("<answer>normal</answer>")["input_ids"]]).expand(len(prompts), -1)
    fillers = {"input_ids": answer, "attention_mask": torch.ones_like(answer), "mm_token_type_ids": answer * 0}
    for name, filler in fillers.items():
        inputs[name] = torch.cat([torch.as_tensor(inputs[name]), filler], dim=1)
    labels = inputs["input_ids"].clone()
    labels[:, : -answer.shape[1]] = -100
    optimizer = torch.optim.AdamW([weights for weights in model.parameters() if weights.requires_grad], lr=0.05)
    model(**inputs, labels=labels).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)


class Settings:
    """What `Start` reads of TRL's ModelConfig."""

    use_peft, load_in_4bit, load_in_8bit = True, False, False
    attn_implementation, dtype = None, "float32"


def requests_of(server):
    """How many requests a server has answered."""
    with urllib.request.urlopen(server.url.replace("/v1", "/metrics"), timeout=30) as told:
        lines = told.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


SYSTEMS = "systems:\n  house: {{system: mmedagent, hospital: {url}, doctors: 1}}\n"
CASES = 48


def test_a_server_that_is_killed_amid_a_batch(hospital, tmp_path, capsys):
    """The cases that it takes with it have failed and say why; with the server back the same command asks for no more
    than what was not answered."""
    folder, out = tmp_path / "vllm", tmp_path / "out"
    systems = tmp_path / "systems.yaml"
    options = serving(hospital).flags()
    flags = [f"--systems={systems}", f"--size={CASES}", f"--out={out}", "--concurrency=4", "--retries=0"]
    with served(folder, *options) as server:
        systems.write_text(SYSTEMS.format(url=server.url))
        batch = subprocess.Popen([sys.executable, "-m", "rl.evaluate", *flags], stdout=subprocess.PIPE, text=True)
        while requests_of(server) < CASES:  # of 3 a case
            assert batch.poll() is None
            time.sleep(0.1)
        server.kill()
        told, _ = batch.communicate(timeout=300)
    report = json.loads((out / "evaluation.json").read_text())["results"]["clinic"]["house"]
    assert 0 < report["done"] < CASES
    assert report["done"] + report["failed"] == CASES
    assert [why for why in report["failed_cases"].values() if "onnect" not in why] == []  # connection, disconnected
    assert f"note: {report['failed']} cases of house failed" in told
    kept = answered(out)
    with served(folder, *options, at=server.port) as back:
        result = evaluate(flags)["results"]["clinic"]["house"]
        asked = requests_of(back)
        evaluate(flags)
        assert requests_of(back) == asked  # once more, of nobody
    assert (result["done"], result["failed"]) == (CASES, 0)
    assert asked == 3 * CASES - kept
    assert kept > CASES / 2


def answered(out):
    """How many answers a command has kept."""
    with sqlite3.connect(out / "answers-0.db") as answers:
        return answers.execute("SELECT COUNT(*) FROM cache").fetchone()[0]
