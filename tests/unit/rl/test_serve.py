"""`python -m rl.serve`: the command and the Compose file of a hospital and of a run, and what vLLM would not serve."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mmedagent_graph.hospital import open_hospital
from rl.models import BASE
from rl.serve import RANKS, main

PLAIN = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
TOWER = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"


@pytest.fixture
def adapter(tmp_path):
    """Writes an adapter's folder: its configuration, and weights of these names."""

    def write(name, *weights, r=8, base=str(BASE), **config):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        told = {"peft_type": "LORA", "r": r, "lora_alpha": 16, "base_model_name_or_path": base, **config}
        (folder / "adapter_config.json").write_text(json.dumps(told))
        save_file({weight: torch.zeros(1) for weight in weights or [PLAIN]}, folder / "adapter_model.safetensors")
        return folder

    return write


@pytest.fixture
def hospital(tmp_path, adapter):
    """A hospital of a triage doctor and two specialists, one of them the base, as is the attending."""
    who = [f"--specialist=Radiologist={adapter('elsewhere')}", "--specialist=Nuclear medicine"]
    triage = str(adapter("one/triage", r=12))
    main([str(tmp_path / "one"), "--make", "--base", "clinic:base", "--triage", triage, *who])
    return tmp_path / "one"


def printed(capsys, *arguments):
    capsys.readouterr()
    main([*map(str, arguments)])
    return capsys.readouterr().out


def test_a_made_hospital_names_adapters_where_they_lie(hospital, tmp_path):
    assert json.loads((hospital / "hospital.json").read_text()) == {
        "base": "clinic:base",
        "triage": "triage",
        "attending": None,
        "specialists": {"Radiologist": str(tmp_path / "elsewhere"), "Nuclear medicine": None},
    }
    assert open_hospital(hospital).specialties == ("Radiologist", "Nuclear medicine")


def test_the_command_of_a_hospital(hospital, tmp_path, capsys):
    line = shlex.split(printed(capsys, hospital, "--print", "--dtype", "float32"))
    assert line == [
        *["VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "python", "-m", "vllm.entrypoints.openai.api_server"],
        *["--model", str(BASE), "--served-model-name", "base", "attending", "nuclear-medicine", "--enable-lora"],
        *["--max-lora-rank", "16", "--max-loras", "3", "--lora-modules"],
        *[f"triage={hospital / 'triage'}", f"radiologist={tmp_path / 'elsewhere'}"],
        *["--host", "127.0.0.1", "--port", "8000", "--dtype", "float32"],
    ]


def test_adapters_are_loaded_at_run_time_only_where_that_is_asked_for(hospital, capsys):
    name = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    assert name not in printed(capsys, hospital, "--print")
    assert f"{name}=1 python" in printed(capsys, hospital, "--print", "--reload")


def test_the_compose_file_mounts_all_that_is_served_read_only(hospital, tmp_path, capsys):
    (service,) = yaml.safe_load(printed(capsys, hospital, "--compose", "--reload"))["services"].values()
    mounts = {volume["target"]: volume["source"] for volume in service["volumes"]}
    assert mounts == {
        "/base": str(BASE),
        "/adapters/triage": str(hospital / "triage"),
        "/adapters/radiologist": str(tmp_path / "elsewhere"),
    }
    assert all(volume["read_only"] for volume in service["volumes"])
    named = {word.rpartition("=")[2] for word in service["command"] if "/" in word}
    assert named == set(mounts)  # nothing of this machine's
    (gpus,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert gpus["capabilities"] == ["gpu"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_it_is_reached_where_one_says(hospital, capsys):
    where = ["--host", "10.0.0.5", "--port", "9000"]
    assert " ".join(where) in printed(capsys, hospital, "--print", *where)
    (service,) = yaml.safe_load(printed(capsys, hospital, "--compose", *where))["services"].values()
    assert service["ports"] == ["10.0.0.5:9000:8000"]  # inside it is the container's
    assert " ".join(service["command"]).endswith("--host 0.0.0.0 --port 8000")


def test_the_hospital_of_a_server_is_not_served_again(tmp_path, monkeypatch, capsys):
    url = "http://127.0.0.1:8000/v1"
    main([str(tmp_path), "--make", "--base", url, "--specialist", "Pediatrician"])
    monkeypatch.setattr("mmedagent_graph.hospital._served", lambda _: {"triage": True, "pediatrician": True})
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--print"])
    assert f"is the hospital of a server that is there already, {url}" in capsys.readouterr().err


def test_a_base_of_the_hub_is_fetched_into_its_cache(adapter, tmp_path, capsys):
    folder = adapter("one/triage", base="Qwen/Qwen2.5-VL-7B-Instruct")
    main([str(tmp_path / "one"), "--make", "--base", "Qwen/Qwen2.5-VL-7B-Instruct", "--triage", str(folder)])
    assert "--model Qwen/Qwen2.5-VL-7B-Instruct --served" in printed(capsys, tmp_path / "one", "--print")
    (service,) = yaml.safe_load(printed(capsys, tmp_path / "one", "--compose"))["services"].values()
    assert service["volumes"][-1].endswith(":/root/.cache/huggingface")
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in service["command"]


def test_a_run_with_two_policies(adapter, tmp_path, capsys):
    run = tmp_path / "run"
    for name in ("triage", "attending"):
        adapter(f"run/stages/1/{name}")
        (run / f"model-{name}").symlink_to(f"stages/1/{name}")
    (run / "model").symlink_to("stages/1/attending")
    line = printed(capsys, run, "--print")
    assert f"--lora-modules attending={run}/stages/1/attending triage={run}/stages/1/triage" in line
    assert "--served-model-name base" in line


def test_a_run_with_one_policy(adapter, tmp_path, capsys):
    adapter("run/model")
    assert f"--lora-modules model={tmp_path}/run/model" in printed(capsys, tmp_path / "run", "--print")


def test_a_run_with_a_whole_model(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(BASE)
    line = printed(capsys, tmp_path / "run", "--print")
    assert f"--model {BASE} --served-model-name model --host" in line
    assert "lora" not in line


@pytest.mark.parametrize(("r", "taken"), [(1, 1), (2, 8), (8, 8), (65, 128), (512, 512)])
def test_ranks_are_those_that_vllm_takes(adapter, tmp_path, capsys, r, taken):
    assert taken in RANKS
    adapter("run/model", r=r)
    assert f"--max-lora-rank {taken} " in printed(capsys, tmp_path / "run", "--print")


@pytest.mark.parametrize(
    ("weights", "config", "told"),
    [
        ([PLAIN, TOWER], {}, r"visual\.blocks.*; train it with --freeze_vision, add .*, or serve it as a whole model"),
        ([PLAIN], {"use_dora": True}, r"DoRA, which vLLM does not serve; serve it as a whole model"),
        ([PLAIN], {"modules_to_save": ["lm_head"]}, r"modules_to_save: lm_head"),
        ([PLAIN], {"bias": "all"}, r"bias: all"),
        ([PLAIN], {"r": 513}, r"rank 513, and vLLM takes 512 at most"),
        ([PLAIN], {"alpha_pattern": {"q_proj": 4}}, r"alpha_pattern"),
        ([PLAIN], {"peft_type": "IA3"}, r"IA3 in place of LoRA"),
        (["base_model.model.lm_head.lora_A.weight"], {}, r"no LoRA of the language model's layers"),
    ],
)
def test_what_vllm_would_not_serve_as_it_is_is_refused(adapter, tmp_path, capsys, weights, config, told):
    folder = adapter("run/model", *weights, **config)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run"), "--print"])
    error = capsys.readouterr().err
    assert f"serve: model: {str(folder)!r} has " in error
    assert re.search(told, error)


def test_eyes_of_its_own_are_served_where_vllm_is_told_to_take_them(adapter, tmp_path, capsys):
    adapter("run/model", PLAIN, TOWER)
    tower = "--enable-tower-connector-lora"
    assert printed(capsys, tmp_path / "run", "--print", tower).endswith(f"{tower}\n")


def test_adapters_of_two_bases_are_refused(adapter, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    save_file({"weight": torch.zeros(1)}, other / "model.safetensors")
    folder = adapter("one/triage", base=str(other))
    made = [str(tmp_path / "one"), "--make", "--base", "clinic:base", "--triage", str(folder)]
    with pytest.raises(SystemExit):
        main(made)
    assert "is an adapter of another base than 'clinic:base'" in capsys.readouterr().err


def test_a_base_that_lies_elsewhere_now_is_the_same(adapter, tmp_path, capsys):
    """What an adapter was trained on has a path of the machine where that was."""
    folder = adapter("one/triage", base="/where/it/was/trained")
    main([str(tmp_path / "one"), "--make", "--base", "clinic:base", "--triage", str(folder)])
    assert f"--model {BASE}" in printed(capsys, tmp_path / "one", "--print")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--make"], "make: no --base; it takes --base"),
        (["--make", "--base", "clinic:base", "--triage", "/nowhere"], "triage: no adapter in '/nowhere'"),
        (["--make", "--base", "clinic:base", "--specialist", "A", "--specialist", "A"], "each specialty goes once"),
        (["--make", "--base", "clinic:base", "--specialist", "Triage"], "triage is named twice"),
        (["--print"], "is no hospital (no hospital.json) and no finished run (no model)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "one"), *arguments])
    assert told in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_without_vllm_it_says_where_to_go(hospital, monkeypatch, capsys):
    monkeypatch.setattr("rl.serve.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main([str(hospital)])
    assert "vLLM is not installed here; --print the command" in capsys.readouterr().err


def test_it_becomes_the_server(hospital, monkeypatch):
    started = []
    monkeypatch.setattr("rl.serve.find_spec", lambda _: True)
    monkeypatch.setattr("rl.serve.os.execve", lambda *given: started.append(given))
    main([str(hospital)])
    ((_, command, environment),) = started
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
