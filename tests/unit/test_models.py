"""Tests of model strings, and of what importing the package costs."""

import importlib.machinery
import json
import socket
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import FakeModel, answers, graph, words
from langchain_core.language_models import FakeListChatModel
from langchain_openai import ChatOpenAI

from mmedagent_graph import models
from mmedagent_graph.models import GROUP, load_model, sampled

IMPORT = """
import json, sys
import mmedagent_graph
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The providers `fake:`, whose object is `fakes.says`, and `broken:`, whose package is missing."""
    found = [
        EntryPoint(name="fake", value="fakes:says", group=GROUP),
        EntryPoint(name="broken", value="no_such_package:model", group=GROUP),
    ]
    monkeypatch.setattr(models, "entry_points", lambda *, group: [entry for entry in found if entry.group == group])


@pytest.fixture
def without_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)


@pytest.fixture
def with_langchain(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the package langchain; the names that `init_chat_model` was asked for."""
    asked: list[str] = []

    def init_chat_model(name: str) -> FakeModel:
        asked.append(name)
        return FakeModel(answer=lambda _: "from langchain")

    package, module = ModuleType("langchain"), ModuleType("langchain.chat_models")
    package.__spec__ = importlib.machinery.ModuleSpec("langchain", None)
    module.init_chat_model = init_chat_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "langchain", package)
    monkeypatch.setitem(sys.modules, "langchain.chat_models", module)
    return asked


@pytest.mark.usefixtures("plugins", "without_langchain")
def test_an_unknown_provider_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown provider 'opanai' in .* broken, fake, openai, vllm"):
        load_model("opanai:gpt-4o")


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", ["", "gpt-4o", "openai", "openai:", ":gpt-4o", ":"])
def test_a_string_without_provider_or_model_lists_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match="not of the form 'provider:model'; providers are broken, fake, openai, vllm"):
        load_model(name)


@pytest.mark.usefixtures("plugins")
def test_an_entry_point_is_called_with_the_models_name() -> None:
    model = load_model("fake:name/with:colon")
    assert isinstance(model, FakeModel)
    assert words([model.invoke("?")]) == "name/with:colon"


@pytest.mark.usefixtures("plugins")
def test_a_plugin_that_cannot_be_imported_says_so() -> None:
    with pytest.raises(ValueError, match="'broken:model' needs no_such_package; pip install"):
        load_model("broken:model")


def test_the_entry_points_of_this_distribution() -> None:
    found = {entry.name: entry.value for entry in models.entry_points(group=GROUP)}
    assert found == {"clinic": "rl.policy:clinic_model", "transformers": "rl.policy:transformers_model"}


@pytest.mark.usefixtures("plugins")
def test_any_other_provider_is_left_to_langchain(with_langchain: list[str]) -> None:
    model = load_model("anthropic:claude")
    assert words([model.invoke("?")]) == "from langchain"
    assert with_langchain == ["anthropic:claude"]


@pytest.mark.usefixtures("plugins", "offline")
def test_built_in_providers_come_first(with_langchain: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert isinstance(load_model("openai:gpt-4o"), ChatOpenAI)
    assert with_langchain == []


@pytest.mark.usefixtures("offline")
def test_openai_is_built_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model = load_model("openai:gpt-4o")
    assert isinstance(model, ChatOpenAI)
    assert model.model_name == "gpt-4o"


@pytest.mark.usefixtures("offline")
def test_vllm_is_built_without_network_or_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "VLLM_API_KEY", "VLLM_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    model = load_model("vllm:Qwen/Qwen2.5-VL-7B-Instruct")
    assert isinstance(model, ChatOpenAI)
    assert (model.model_name, model.openai_api_base) == ("Qwen/Qwen2.5-VL-7B-Instruct", "http://127.0.0.1:8000/v1")
    assert (model.use_responses_api, model.temperature, model.stream_usage) == (False, 0.0, True)
    assert sampled(model).temperature == 1.0  # a vote


@pytest.mark.usefixtures("offline")
def test_vllm_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", "http://gpu:9000/v1")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    model = load_model("vllm:radiologist")
    assert isinstance(model, ChatOpenAI)
    assert model.openai_api_base == "http://gpu:9000/v1"
    assert model.openai_api_key is not None
    assert model.openai_api_key.get_secret_value() == "secret"  # type: ignore[union-attr]
    assert "secret" not in repr(model)


@pytest.mark.parametrize(("own", "asked"), [(0.0, 1.0), (0, 1.0), (0.3, 0.3), (1.0, 1.0), (None, None)])
def test_votes_are_samples(own: float | None, asked: float | None) -> None:
    model = answers("CT", temperature=own)
    sampling = sampled(model)
    assert (sampling.temperature, model.temperature) == (asked, own)  # the model that was given is left alone
    assert sampling.invoke("?").text == model.invoke("?").text


def test_a_model_without_a_temperature_is_taken_as_it_is() -> None:
    plain = FakeListChatModel(responses=["CT"])
    assert sampled(plain) is plain


def test_the_import_is_light(tmp_path: Path) -> None:
    """Of what is slow to import nothing comes along: by themselves these take seconds."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert "mmedagent_graph" in loaded
    assert loaded & {"torch", "rl", "transformers", "trl", "peft", "datasets", "openai", "langchain_openai"} == set()


def test_no_module_of_the_package_names_torch_or_rl() -> None:
    folder = Path(models.__file__).parent
    lines = [line.split() for path in folder.rglob("*.py") for line in path.read_text().splitlines()]
    imported = {line[1].partition(".")[0] for line in lines if line[:1] in (["import"], ["from"])}
    assert imported & {"torch", "rl", "transformers"} == set()
    assert "langgraph" in imported


def test_a_model_without_its_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"attending: model: 'openai:gpt-4o': .*(?i:api[_ ]key|credentials)"):
        graph(attending="openai:gpt-4o")


def test_a_proxy_of_openais_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    load_model("openai:gpt-4o")
