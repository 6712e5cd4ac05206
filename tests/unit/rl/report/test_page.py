"""The page as a file: whole, escaped, and asking nobody for anything."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape
from reported import EVIL, HALF, a_consultation, picture, result, write_evaluation, write_traced, write_training

from rl.report.__main__ import main
from rl.report.page import DISCLAIMER


class Tags(HTMLParser):
    """The elements of a page, with their attributes, and what is in its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.inside.append((self.found[-1][0], self.found[-1][1].get("type"), data))


@pytest.fixture
def run(tmp_path):
    """The page of a run whose every word is hostile."""
    folder = tmp_path / "run"
    ref = picture(folder)
    heard = (EVIL, "cyst", None)
    traces = [
        a_consultation(f"{EVIL}-{i}", heard, EVIL, said=EVIL, question=EVIL, options=[EVIL, "cyst"], images=[ref],
                       context=EVIL, groups={EVIL: EVIL}, specialty=EVIL, confidence=0.6)
        for i in range(3)
    ]  # fmt: skip
    return write_traced(
        folder,
        {"clinic": {"a": traces}},
        systems={"a": {"system": "single", "model": EVIL}},
        commit=EVIL,
        versions={EVIL: EVIL},
    )


def read(written):
    return written.html.read_text(encoding="utf-8")


def test_what_is_said_is_text(run):
    page = read(main([str(run)]))
    tags = Tags(page)
    assert [attrs.get("type") for tag, attrs in tags.found if tag == "script"] == ["application/json", None]
    assert "img" not in {tag for tag, _ in tags.found}, "images are made by the script"
    assert not [name for _, attrs in tags.found for name in attrs if name.startswith("on") or name == "style"]
    assert page.count("{{7*7}}") > 20, "no template is made of it"
    assert "&lt;/script&gt;" in page


def test_half_a_surrogate_pair_is_no_crash(tmp_path):
    """In what a model said, in a label that is drawn, and in the folder's name."""
    folder = tmp_path / "run-\udcff"  # a byte that is no UTF-8
    fields = {"said": HALF, "specialty": f"Surgeon {HALF}", "images": [f"sha256:{'0' * 64}"]}
    traces = [a_consultation(f"one-{HALF}", **fields)]
    write_traced(folder, {"clinic": {"a": traces}}, commit=HALF)
    written = main([str(folder), "--out", str(tmp_path / "report.html")])
    page = read(written)
    assert "\\ud83d" in page, "the traces tell it"
    assert "Surgeon ?" in page
    assert "run-?</dd>" in page


def test_a_page_that_cannot_be_made_leaves_the_one_before(tmp_path, monkeypatch):
    run = str(write_evaluation(tmp_path, {"clinic": {"a": result()}}))
    before = read(main([run]))

    def full(path, *_, **__):
        path.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        main([run])
    assert (tmp_path / "report.html").read_text() == before


def test_nothing_is_asked_of_anybody(run):
    page = read(main([str(run)]))
    for tag, attrs in Tags(page).found:
        for name in ("src", "href", "action", "srcset", "data"):
            if name in attrs:
                assert re.match("#|data:text/plain", attrs[name]), (tag, attrs)
    addresses = set(re.findall(r"https?://[\w./]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_the_policy_knows_this_pages_style_and_script(run):
    tags = Tags(read(main([str(run)])))
    (policy,) = [attrs["content"] for tag, attrs in tags.found if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for kind, form, text in tags.inside:
        if form != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_it_says_what_was_run_and_what_it_is_not(tmp_path):
    page = read(main([str(write_evaluation(tmp_path, {"clinic": {"a": result(), "b": result()}}))]))
    for words in (escape(DISCLAIMER), "single: model clinic:a", "10 cases, 0 rows left out", "abc1234", "torch 2.13.0"):
        assert words in page
    assert "<title>Consultations on clinic</title>" in page


def test_it_says_which_cases_were_chosen(tmp_path):
    chosen = {"split": "train", "free_text": "grade", "limit": 50}
    page = read(main([str(write_evaluation(tmp_path, {"own": {"a": result()}}, chosen=chosen))]))
    assert "10 cases, 0 rows left out; from own.jsonl; split train; open questions, too; only the first 50<" in page


def test_it_says_how_fast_it_was_run(tmp_path):
    paces = [{"concurrency": 64, "per_minute": None}, {"concurrency": 8, "per_minute": 60.0}, {}]
    folders = [
        write_evaluation(tmp_path / str(seed), {"c": {"a": result()}}, seed, **pace) for seed, pace in enumerate(paces)
    ]
    page = read(main([*map(str, folders), "--out", str(tmp_path / "report.html")]))
    assert "<dd>64 consultations at a time</dd>" in page
    assert "<dd>8 consultations at a time, at most 60 requests a minute of a process to each model</dd>" in page
    assert "waiting in a queue counts" in page
    assert "<dt>pace</dt>" not in read(main([str(folders[2])]))


def test_other_specs_of_a_seed_are_told(tmp_path):
    folders = [
        write_evaluation(
            tmp_path / str(seed),
            {"c": {"a": result()}},
            seed,
            systems={"a": {"system": "single", "model": f"run-{seed}"}},
        )
        for seed in (0, 1)
    ]
    page = read(main([*map(str, folders), "--out", str(tmp_path / "report.html")]))
    assert "seed 0: single: model run-0" in page
    assert "seed 1: single: model run-1" in page


def test_the_table_lies_beside_the_page_and_in_it(tmp_path, capsys):
    run = write_evaluation(tmp_path / "run", {"clinic": {"a": result(0.5)}})
    written = main([str(run), "--out", str(tmp_path / "out" / "page.html")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"page.html", "page.csv", "page.tex"}
    assert "a,no,50.0,40.0,60.0" in written.csv.read_text()
    links = {attrs["download"]: attrs["href"] for tag, attrs in Tags(read(written)).found if "download" in attrs}
    assert set(links) == {"page.csv", "page.tex"}
    said = capsys.readouterr().out
    assert all(str(path) in said for path in (written.html, written.csv, written.latex))


def test_without_traces_no_word_of_a_case_is_in_it(run):
    page = read(main([str(run), "--traces", "0"]))
    assert "onerror" not in re.sub(r"<dl>.*?</dl>|<div class=\"shelf\">.*?</section>", "", page, flags=re.DOTALL)
    assert "<script" not in page


def test_a_draw_says_that_it_is_one(run):
    assert "All 3 consultations." in read(main([str(run)]))
    assert "2 of 3 consultations, drawn evenly over systems, cases and seeds" in read(main([str(run), "--traces", "2"]))


def test_training_alone_has_curves_and_no_table(tmp_path):
    written = main([str(write_training(tmp_path / "run"))])
    page = read(written)
    assert (written.csv, written.latex) == (None, None)
    assert "<title>Training of run</title>" in page
    assert page.count("<svg") == 3
    assert "<table" not in page


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nowhere"], "runs: 'nowhere' is no finished run"),
        (["nowhere", "--traces", "-1"], "traces: -1 is no number of traces"),
        (["nowhere", "--out", "report"], "out: 'report' is no page"),
    ],
)
def test_what_cannot_be_is_refused(flags, words, capsys):
    with pytest.raises(SystemExit):
        main(flags)
    assert words in capsys.readouterr().err


def test_the_same_runs_make_the_same_page(run):
    assert read(main([str(run)])) == read(main([str(run)]))
