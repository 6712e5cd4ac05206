"""Which traces are drawn, and what the page's script gets of them."""

import base64
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reported import EVIL, a_consultation, picture, write_traced
from strategies import a_trace, quiet

from rl.report.browser import as_json, browser, shares, thumbnail
from rl.report.runs import read_runs, studies_of
from rl.report.tables import columns_of, measured
from rl.store import row_of


def drawn(*folders, limit=1000):
    studies = studies_of(read_runs(folders)[0])
    return browser(measured(studies), columns_of(studies), limit)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_shares_are_even(sizes, limit):
    given = shares(sizes, limit)
    assert sum(given) == min(limit, sum(sizes))
    assert all(0 <= one <= size for one, size in zip(given, sizes, strict=True))
    cut = [one for one, size in zip(given, sizes, strict=True) if one < size]
    assert all(max(given) - one <= 1 for one in cut), "nobody is left short of what another has"


def test_of_every_system_the_same_cases_are_drawn(tmp_path):
    traces = {name: [a_consultation(f"case-{i}") for i in range(40)] for name in ("a", "b")}
    traces["b"].reverse()
    found = drawn(write_traced(tmp_path, {"clinic": traces}), limit=20)
    assert (found.shown, found.total) == (20, 80)
    of = {name: {trace["case"] for trace in found.data["traces"] if trace["system"] == name} for name in ("a", "b")}
    assert of["a"] == of["b"]
    assert len(of["a"]) == len(found.data["cases"]) == 10
    assert [trace["case"] for trace in found.data["traces"]] == sorted([*of["a"]] * 2), "side by side"


def test_what_is_drawn_does_not_depend_on_the_answers(tmp_path):
    cases = [f"case-{i}" for i in range(30)]
    found = []
    for decided in ("cyst", "scar"):
        folder = write_traced(
            tmp_path / decided, {"c": {"a": [a_consultation(case, decided=decided) for case in cases]}}
        )
        found.append({case["id"] for case in drawn(folder, limit=7).data["cases"]})
    assert found[0] == found[1]


def test_seeds_and_cases_are_drawn_from_alike(tmp_path):
    folders = [
        write_traced(
            tmp_path / str(seed),
            {
                name: {"a": [a_consultation(f"{name}-{seed}-{i}") for i in range(n)]}
                for name, n in (("x", 50), ("y", 3))
            },
            seed,
        )
        for seed in (0, 1)
    ]
    traces = drawn(*folders, limit=26)
    counts = {}
    for trace in traces.data["traces"]:
        key = (traces.data["cases"][trace["case"]]["set"], trace["seed"])
        counts[key] = counts.get(key, 0) + 1
    assert counts == {("x", 0): 10, ("x", 1): 10, ("y", 0): 3, ("y", 1): 3}


def test_a_case_that_two_divisions_into_shards_have_measured_is_there_once(tmp_path):
    folder = write_traced(tmp_path, {"c": {"a": [a_consultation(f"case-{i}") for i in range(4)]}})
    whole = folder / "trials" / "c" / "a" / "traces.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    whole.with_name("traces.1-of-3.jsonl").write_text("".join(lines[1:3]))
    found = drawn(folder)
    assert (found.shown, found.total) == (4, 4)
    assert sorted(trace["case"] for trace in found.data["traces"]) == [0, 1, 2, 3]


def test_none_are_asked_for(tmp_path):
    found = drawn(write_traced(tmp_path, {"clinic": {"a": [a_consultation("one")]}}), limit=0)
    assert (found.shown, found.total) == (0, 1)
    assert found.data == {"traces": [], "cases": [], "images": []}


@pytest.mark.parametrize(
    ("heard", "decided", "expected"),
    [
        (("cyst", "cyst", "scar"), "cyst", (True, True, None, "medium")),
        (("cyst", "cyst", "scar"), "scar", (False, True, "right to wrong", "medium")),
        (("cyst", "cyst", "cyst"), None, (False, False, "right to wrong", "easy")),
        (("scar", "scar", "scar"), "cyst", (True, True, "wrong to right", "hard")),
        (("scar", "scar", "cyst"), "nodule", (False, True, None, "medium")),
        (("scar", "nodule", "cyst"), "cyst", (True, True, None, "medium")),  # there is no majority
    ],
)
def test_flips(tmp_path, heard, decided, expected):
    (trace,) = drawn(write_traced(tmp_path, {"c": {"a": [a_consultation("one", heard, decided)]}})).data["traces"]
    assert (trace["right"], trace["read"], trace["flip"], trace["tier"]) == expected
    assert [opinion["right"] for opinion in trace["opinions"]] == [answer == "cyst" for answer in heard]


def test_tiers_are_the_references(tmp_path):
    heard = {"reference": ("cyst", "cyst", "cyst"), "other": ("scar", "scar", "scar")}
    folder = write_traced(tmp_path, {"c": {name: [a_consultation("one", said)] for name, said in heard.items()}})
    assert {trace["system"]: trace["tier"] for trace in drawn(folder).data["traces"]} == dict.fromkeys(heard, "easy")


def test_a_trace_tells_all_but_its_tokens(tmp_path):
    folder = write_traced(tmp_path, {"c": {"a": [a_consultation("one", said="Look.")]}})
    (trace,) = drawn(folder).data["traces"]
    assert [call["node"] for call in trace["calls"]] == ["triage", *["specialist"] * 3, "attending"]
    assert {**trace["calls"][0]} == {
        **{"node": "triage", "specialty": None, "doctor": None, "vote": None, "model": "clinic:base", "text": "Look."},
        **{"finish": "stop", "input_tokens": 32, "output_tokens": 7, "seconds": 0.25, "cached": False},
    }
    assert trace["referral"] == {"specialty": "Radiologist", "reasoning": "Look."}
    assert trace["decision"]["reasoning"] == "Look."


@quiet
@given(a_trace)
def test_every_trace_can_be_shown(tmp_path_factory, trace):
    folder = write_traced(tmp_path_factory.mktemp("run"), {"c": {"a": [a_consultation("one")]}})
    (folder / "trials" / "c" / "a" / "traces.jsonl").write_text(json.dumps({"id": trace.case, **row_of(trace)}) + "\n")
    found = drawn(folder).data
    assert json.loads(as_json(found)) == found
    assert found["cases"][0]["question"] == trace.question
    assert found["traces"][0]["right"] == (None if trace.answer is None else bool(trace.right))


# Images


def pixels(url):
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as image:
        return image.format, image.size


def test_an_image_is_there_once_and_small(tmp_path):
    ref = picture(tmp_path, (1200, 600))
    traces = {name: [a_consultation(f"case-{i}", images=[ref, ref]) for i in range(3)] for name in ("a", "b")}
    found = drawn(write_traced(tmp_path, {"clinic": traces})).data
    assert [case["images"] for case in found["cases"]] == [[0, 0]] * 3
    assert [pixels(url) for url in found["images"]] == [("JPEG", (320, 160))]


def test_a_small_image_is_not_made_larger(tmp_path):
    assert pixels(thumbnail(tmp_path / "images", picture(tmp_path, (40, 30)))) == ("JPEG", (40, 30))


def test_an_image_that_is_not_there_or_broken_is_none(tmp_path):
    ref = picture(tmp_path)
    (tmp_path / "images" / ref.removeprefix("sha256:")).write_bytes(b"broken")
    assert thumbnail(tmp_path / "images", ref) is None
    assert thumbnail(tmp_path / "images", "sha256:" + "0" * 64) is None
    assert thumbnail(tmp_path / "images", "sha256:../../etc/passwd") is None
    assert thumbnail(tmp_path / "elsewhere", ref) is None
    assert not (tmp_path / "elsewhere").exists(), "a run's folder is only read"


def test_an_image_that_another_run_holds_is_found_there(tmp_path):
    ref = picture(tmp_path / "1")
    folders = [
        write_traced(tmp_path / str(seed), {"clinic": {"a": [a_consultation("one", images=[ref])]}}, seed)
        for seed in (0, 1)
    ]
    found = drawn(*folders).data
    assert len(found["images"]) == 1
    assert found["images"][0] is not None


# JSON in a page

words = st.text(st.characters(exclude_categories=()))  # halves of surrogate pairs, too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_is_the_same_and_cannot_end_its_script(value):
    assert json.loads(as_json(value)) == json.loads(json.dumps(value)), "two halves beside each other are one"
    assert "<" not in as_json(value)
    assert as_json(value).isascii()


def test_hostile_text_is_whole():
    assert json.loads(as_json({"said": EVIL}))["said"] == EVIL
    assert "</script" not in as_json(EVIL)
