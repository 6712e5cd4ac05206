"""LangGraph's server with `langgraph.json`, driven over HTTP as Studio drives it: no key, no network, loopback only."""

import base64
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from mmedagent_graph.images import ImageStore
from rl.clinic.cases import ClinicCase, make_cases

sdk = pytest.importorskip("langgraph_sdk", reason="LangGraph's server is not installed (extra: studio)")
pytest.importorskip("langgraph_api", reason="LangGraph's server is not installed (extra: studio)")

ROOT = Path(__file__).parents[2]
GRAPH = "consultation"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [Path(sys.executable).with_name("langgraph"), "dev", "--config", ROOT / "langgraph.json"]
    flags = ["--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port), "--n-jobs-per-worker", "4"]
    quiet = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [*command, *flags],
        cwd=folder,
        env=clean | quiet | {"OMP_NUM_THREADS": "1", "MMEDAGENT_MODELS": "clinic:base,clinic:doctor-1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/ok").is_success:
                    break
            if server.poll() is not None:
                break
            time.sleep(0.5)
        else:
            server.terminate()
        assert server.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def client(url: str):
    return sdk.get_sync_client(url=url)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> ClinicCase:
    store = ImageStore(tmp_path_factory.mktemp("images"))
    case = next(case for case in make_cases(20, 3, store) if case.options)
    url = "data:image/png;base64," + base64.b64encode(store.get(case.images[0])).decode()
    return dataclasses.replace(case, images=[url])


def fields(case: ClinicCase) -> dict[str, Any]:
    return {"question": case.question, "options": case.options, "images": case.images}


def test_the_schemas_tell_a_user_what_to_give(client):
    (assistant,) = client.assistants.search(graph_id=GRAPH)
    schemas = client.assistants.get_schemas(assistant["assistant_id"])
    assert {"question", "options", "images", "context", "messages"} <= set(schemas["input_schema"]["properties"])
    assert all("description" in field for field in schemas["input_schema"]["properties"].values())
    assert {"referral", "opinions", "decision", "usage"} <= set(schemas["output_schema"]["properties"])
    context = schemas["context_schema"]["properties"]
    assert {"triage", "specialists", "attending", "votes", "abstain_below", "review", "max_referrals"} <= set(context)
    assert all(field["default"] is None and field["description"] for field in context.values())


def test_the_graph_can_be_drawn(client):
    (assistant,) = client.assistants.search(graph_id=GRAPH)
    drawn = client.assistants.get_graph(assistant["assistant_id"])
    assert {"triage", "specialist", "attending", "review"} <= {node["id"] for node in drawn["nodes"]}


def test_a_run_streams_what_happens(client, case):
    thread = client.threads.create()["thread_id"]
    modes = ["updates", "custom", "values"]
    parts = list(client.runs.stream(thread, GRAPH, input=fields(case), stream_mode=modes))
    assert [part.data for part in parts if part.event == "error"] == []
    events = [part.data["event"] for part in parts if part.event == "custom"]
    assert events[0] == "referral"
    assert events[-1] == "decision"
    assert events.count("opinion") == 3
    decision = client.threads.get_state(thread)["values"]["decision"]
    assert decision["answer"] in case.options
    assert [part.data for part in parts if part.event == "values"][-1]["decision"] == decision


def test_no_image_is_kept_in_the_thread(client, case):
    thread = client.threads.create()["thread_id"]
    client.runs.wait(thread, GRAPH, input=fields(case))
    kept = str(client.threads.get_history(thread, limit=50))
    assert "sha256:" in kept
    assert case.images[0][-200:] not in kept


def test_a_chat_with_an_image_is_a_case(client, case):
    thread = client.threads.create()["thread_id"]
    lines = [case.question, *(f"{letter}. {option}" for letter, option in zip("ABCDEF", case.options, strict=False))]
    content = [
        {"type": "text", "text": "\n".join(lines)},
        {"type": "image_url", "image_url": {"url": case.images[0]}},
    ]
    values = client.runs.wait(thread, GRAPH, input={"messages": [{"type": "human", "content": content}]})
    by_fields = client.runs.wait(None, GRAPH, input=fields(case))
    assert values["decision"]["answer"] == by_fields["decision"]["answer"]
    assert [message["type"] for message in values["messages"]] == ["human", "ai"]
    assert values["messages"][-1]["content"].startswith(values["decision"]["answer"])


def test_a_human_reviews_and_the_run_goes_on(client, case):
    thread = client.threads.create()["thread_id"]
    client.runs.wait(thread, GRAPH, input=fields(case), context={"review": True})
    (waiting,) = client.threads.get_state(thread)["tasks"]
    (interrupt,) = waiting["interrupts"]
    assert interrupt["value"]["decision"]["answer"] in case.options
    other = next(option for option in case.options if option != interrupt["value"]["decision"]["answer"])
    resume = {"resume": {"action": "change", "answer": other}}
    values = client.runs.wait(thread, GRAPH, command=resume, context={"review": True})
    assert values["decision"]["answer"] == other
    assert values["decision"]["review"] == "changed"
    assert values["usage"]["specialist"]["calls"] == 3


def test_the_context_changes_a_run(client, case):
    context = {"votes": 3, "specialists": ["clinic:doctor-1"]}
    values = client.runs.wait(None, GRAPH, input=fields(case), context=context)
    assert values["decision"]["votes"] == 3
    assert len(values["opinions"]) == 1


def refusal(client, **run: Any) -> str:
    """What the server says of a run that cannot be."""
    try:
        parts = list(client.runs.stream(None, GRAPH, **run))
    except httpx.HTTPStatusError as error:
        return str(error) + error.response.text
    assert parts[-1].event == "error", parts[-1]
    return str(parts[-1].data)


@pytest.mark.parametrize("image", ["{secret}", "file://{secret}", "../../../../../../..{secret}", "{url}/info"])
def test_no_path_and_no_address_from_outside(client, url, image, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    given = image.format(secret=secret, url=url)
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": given}}]
    for input in (
        {"question": "What?", "images": [given]},
        {"messages": [{"type": "human", "content": content}]},
    ):
        said = refusal(client, input=input)
        assert "images[0]" in said
        assert "data URL" in said


def test_only_the_models_that_the_operator_named(client, case):
    said = refusal(client, input=fields(case), context={"attending": "transformers:/etc"})
    assert "not allowed here; allowed are clinic:base, clinic:doctor-1" in said


def test_a_mistake_in_the_input_is_told(client):
    assert "question" in refusal(client, input={"options": ["a", "b"]})
