"""Expert traces: what is read is what was written, for us and for `datasets`."""

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strategies import maybe, quiet, text

from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes import Specialist
from rl.expert_traces import ROWS, ExpertTrace, parquet_of, read_expert_traces, write_expert_traces

TRACE = ExpertTrace(
    case="c1",
    question="Which scan is it?",
    options=["CT", "MRI"],
    images=[],
    context=None,
    answer="CT",
    specialty="Radiologist",
    perspective="analytical",
    reasoning="Bone is white.",
    text="<think>Bone is white.</think><answer>CT</answer>",
    checks={"findings": True, "location": False},
    teacher="openai:gpt-4o",
)
some = st.builds(
    ExpertTrace,
    **dict.fromkeys(("case", "question", "answer", "specialty", "perspective", "reasoning", "text", "teacher"), text),
    options=st.lists(text, max_size=3),
    images=st.just([]),
    context=maybe,
    checks=st.dictionaries(text, st.booleans(), max_size=3),
)


def pictures(store, n):
    return [store.put(Image.new("RGB", (4, 4), (number, 0, 0))) for number in range(n)]


@quiet
@given(traces=st.lists(some, max_size=4))
def test_what_is_read_is_what_was_written(tmp_path_factory, traces):
    folder, store = tmp_path_factory.mktemp("set"), ImageStore()
    write_expert_traces(parquet_of(folder, "train"), traces, store)
    assert list(read_expert_traces(folder, "train", store)) == traces


def test_images_travel_with_it(tmp_path):
    store, other = ImageStore(tmp_path / "a"), ImageStore(tmp_path / "b")
    refs = pictures(store, ROWS + 3)
    traces = [dataclasses.replace(TRACE, case=str(i), images=[ref, refs[0]]) for i, ref in enumerate(refs)]
    write_expert_traces(parquet_of(tmp_path, "validation"), traces, store)
    assert list(read_expert_traces(tmp_path, "validation", other)) == traces
    assert other.get(refs[-1]) == store.get(refs[-1])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["validation.parquet"]


def test_datasets_sees_images_and_columns(tmp_path):
    store = ImageStore(tmp_path / "images")
    (ref,) = pictures(store, 1)
    write_expert_traces(parquet_of(tmp_path, "train"), [dataclasses.replace(TRACE, images=[ref])], store)
    files = str(parquet_of(tmp_path, "train"))
    (row,) = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    with Image.open(io.BytesIO(store.get(ref))) as picture:
        assert row.pop("images")[0].tobytes() == picture.tobytes()
    told = dataclasses.asdict(TRACE) | {
        "checks": [{"name": "findings", "passed": True}, {"name": "location", "passed": False}]
    }
    del told["images"]
    assert row == told


def test_it_is_asked_by_the_specialists_own_prompt(tmp_path):
    system, user = Specialist(ImageStore(tmp_path)).render(TRACE.given())
    assert "Radiologist" in system.text
    assert user.text == "Question: Which scan is it?\nOptions:\nA. CT\nB. MRI"


def test_no_split(tmp_path):
    with pytest.raises(ValueError, match=r"traces: no split 'test' in .*; it has none"):
        read_expert_traces(tmp_path, "test", ImageStore())
    write_expert_traces(parquet_of(tmp_path, "train"), [TRACE], ImageStore())
    with pytest.raises(ValueError, match=r"no split 'test' in .*; it has train"):
        read_expert_traces(tmp_path, "test", ImageStore())


def test_another_file(tmp_path):
    parquet_of(tmp_path, "train").parent.mkdir()
    pq.write_table(pa.table({"case": ["a"]}), parquet_of(tmp_path, "train"))
    with pytest.raises(ValueError, match=r"train.parquet lacks answer, checks, context, .*rl.build_traces made"):
        read_expert_traces(tmp_path, "train", ImageStore())
