"""What cannot run where it stands is refused before anybody is asked, as the dry run refuses it."""

from importlib.util import find_spec

import pytest
from peft import LoraConfig
from PIL import Image

from rl.launch import launched, refuse_here, refuse_large_images
from rl.models import BASE
from rl.settings import read_settings
from rl.train_attending import COMMAND, main
from rl.train_sft import COMMAND as SFT

HEAD = ["--use_peft", "true", "--lora_target_modules", "q_proj", "lm_head"]


def here(*flags, command=COMMAND):
    refuse_here(read_settings(command, flags))


def test_what_is_launched_without_a_launcher_is_asked_nothing(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    here()
    assert launched().fsdp is None


@pytest.mark.parametrize(("said", "refused"), [("no", False), ("bf16", True)])
def test_a_launch_in_another_precision_is_refused(monkeypatch, said, refused):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    if refused:
        with pytest.raises(ValueError, match=r"mixed_precision: 'bf16'.*'no'"):
            here()
    else:
        here()


@pytest.mark.parametrize(("kind", "refused"), [("FULL_STATE_DICT", False), ("SHARDED_STATE_DICT", True)])
def test_a_launch_that_saves_no_model_is_refused(monkeypatch, kind, refused):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    launch = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": kind}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(ValueError, match=r"fsdp_state_dict_type.*SHARDED_STATE_DICT.*FULL_STATE_DICT"):
            here()
    else:
        here()


def test_adapters_that_cannot_be_trained_are_refused():
    with pytest.raises(ValueError, match=r"lora_target_modules: .*lm_head"):
        here(*HEAD)
    with pytest.raises(ValueError, match=r"lora_target_modules: .*nope"):
        here("--use_peft", "true", "--lora_target_modules", "nope")
    here(*HEAD, command=SFT)  # whose trainer trains them


def test_an_adapter_that_is_trained_on_has_its_own_targets(tmp_path):
    LoraConfig(base_model_name_or_path=str(BASE), target_modules=["q_proj"]).save_pretrained(tmp_path)
    here("--use_peft", "true", "--model", str(tmp_path))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is here")
def test_a_vllm_that_is_not_there_is_refused_and_leaves_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"use_vllm: true.*\[rl,vllm\]"):
        main(["--runs", str(tmp_path), "--name", "one", "--use_vllm", "true"])
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("longest", "vllm", "refused"), [(19, "true", True), (21, "true", False), (19, "false", False)]
)
def test_images_that_leave_no_room_for_words_are_refused(trace, images, longest, vllm, refused):
    """Two images of 56 x 56 pixels are four tokens each in the clinic's model."""
    flags = ["--use_vllm", vllm, "--vllm_max_model_length", str(longest), "--max_completion_length", "12"]
    settings = read_settings(COMMAND, flags)
    refs = [images.put(Image.new("RGB", (56, 56), color)) for color in ("red", "blue")]
    traces = [trace(case="small"), trace(case="large", images=refs)]
    if refused:
        with pytest.raises(ValueError, match=rf"vllm_max_model_length: {longest}.* 12.*'large' take 8"):
            refuse_large_images(settings, traces, images)
    else:
        refuse_large_images(settings, traces, images)
