"""Building expert traces: what is kept is right, what is dropped is counted, and no test case is asked about."""

import collections
import json

import pytest
import yaml
from datasets import load_dataset
from fakes import FakeModel
from hypothesis import given as over
from hypothesis import strategies as st
from PIL import Image

from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes import Specialist
from rl.build_traces import excluded, main, parser, parted, picked, right_answers
from rl.data_card import Making
from rl.datasets import LabeledCase
from rl.duplicates import Seen, words_of
from rl.expert_traces import ExpertTrace, read_expert_traces
from rl.guidelines import GENERAL, PERSPECTIVES, read_guideline
from rl.teacher import perspective_of

OPTIONS = ["CT", "MRI", "PET"]
WAYS = {
    "differential": "It could be CT or MRI. Bright bone supports CT and speaks against MRI.",
    "intuitive": "A typical CT.",
    "analytical": "A scan.",
    "bayesian": "CT is common.",
}


class Teacher(FakeModel):
    """Says what it is told to, by the perspective that the guideline names, and counts."""

    model_name: str = "teacher"


def way_of(messages):
    prompts = {name: told.prompt for name, told in read_guideline().perspectives.items()}
    return next(name for name, prompt in prompts.items() if prompt in messages[0].text)


def right(messages):
    return f"<think>{WAYS[way_of(messages)]}</think><answer>CT</answer>"


@pytest.fixture
def cases(tmp_path):
    """12 questions about 6 pictures; the last one has no specialty."""
    for number in range(6):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [
        {
            "id": f"c{i}",
            "image": f"{i // 2}.png",
            "question": f"Which scan is number {i}?",
            "options": OPTIONS,
            "answer": "CT",
            "specialty": "Radiologist" if i < 11 else None,
            "split": "train",
        }
        for i in range(12)
    ]
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def build(tmp_path, monkeypatch, cases):
    def build(*flags, answer=right, out="out"):
        model = Teacher(answer=answer)
        monkeypatch.setattr("rl.systems.load_model", lambda _: model)
        flags = ["--teacher", "a:teacher", "--cases", str(cases), "--out", str(tmp_path / out), *map(str, flags)]
        return main(flags), model

    return build


def test_right_answers_from_every_perspective_are_kept(build, tmp_path, images):
    making, model = build("--samples", 2, "--holdout", 0.34)
    assert len(model.seen) == 11 * 4 * 2
    assert len(making.traces) == 11 * 4
    assert making.dropped == {"said twice": 44}
    assert making.left_out == {"no specialty": 1}
    parts = {split: list(read_expert_traces(tmp_path / "out", split, images)) for split in ("train", "validation")}
    assert [trace.case for trace in parts["train"] + parts["validation"]] == [trace.case for trace in making.traces]
    pictures = [{ref for trace in part for ref in trace.images} for part in parts.values()]
    assert [len(some) for some in pictures] == [4, 2]
    assert not set.intersection(*pictures)
    one = parts["train"][0]
    assert (one.perspective, one.reasoning) == ("differential", WAYS["differential"])
    assert one.checks == {"alternatives": True, "for": True, "against": True}
    assert (one.answer, one.text) == ("CT", f"<think>{WAYS['differential']}</think><answer>CT</answer>")
    assert (one.specialty, one.teacher) == ("Radiologist", "a:teacher")


def test_the_teacher_is_asked_by_the_specialists_prompt_and_the_guideline_is_not_stored(build, tmp_path, images):
    _, model = build("--samples", 1, "--holdout", 0)
    guideline = read_guideline()
    for trace in read_expert_traces(tmp_path / "out", "train", images):
        system, user = Specialist(images).render(trace.given())
        told = f"{system.text}\n{guideline.text(trace.perspective, 'Radiologist')}"
        assert sum([message.text for message in seen] == [told, user.text] for seen in model.seen) == 1
        assert guideline.text(trace.perspective, "Radiologist") not in system.text


def test_what_is_not_right_is_dropped_and_counted(build):
    answers = iter(
        [
            "<think>a</think><answer>MRI</answer>",
            "<think>a</think><answer>CT",
            "<answer>CT</answer>",
            "CT",
            "<think>a <answer>MRI</answer></think><answer>CT</answer>",
            "<think>b</think><answer>A) CT</answer>",
            "<think>B.</think>\n<answer>ct.</answer>",
            "<think>c</think><answer>CT</answer>",
        ]
    )
    flags = ("--limit", 1, "--samples", 2, "--holdout", 0, "--concurrency", 1)
    making, _ = build(*flags, answer=lambda _: next(answers))
    assert {words_of(trace.reasoning)[0] for trace in making.traces} == {"b", "c"}
    assert {trace.answer for trace in making.traces} == {"CT"}
    assert making.dropped == {
        "wrong": 1,
        "unreadable": 1,
        "no reasoning in <think>": 2,
        "tags inside its reasoning": 1,
        "said twice": 1,
    }
    assert making.answers == 8


def test_checks_may_be_required(build):
    making, _ = build("--samples", 1, "--require_checks")
    assert {trace.perspective for trace in making.traces} == {"differential", "intuitive"}
    assert making.dropped == {"not all checks pass": 22}


def test_a_perspective_may_be_chosen_and_others_added_without_asking_again(build, tmp_path):
    making, model = build("--perspectives", "bayesian", "intuitive", "--samples", 1)
    assert {trace.perspective for trace in making.traces} == {"bayesian", "intuitive"}
    assert len(model.seen) == 22
    with pytest.raises(SystemExit):
        build("--samples", 2)
    for path in (tmp_path / "out" / "making" / "trial").iterdir():
        path.unlink()
    _, model = build("--samples", 1)
    assert collections.Counter(map(way_of, model.seen)) == {"differential": 11, "analytical": 11}


def test_the_same_command_asks_nothing_again(build):
    first, _ = build()
    again, model = build()
    assert model.seen == []
    assert again.traces == first.traces


def test_more_cases_go_on(build):
    assert build("--limit", 3, "--samples", 1)[0].cases == 3
    making, model = build("--samples", 1)
    assert (making.cases, len(model.seen)) == (11, 8 * 4)


def test_a_specialty_for_all(build):
    making, _ = build("--specialty", "Pediatrician", "--samples", 1)
    assert {trace.specialty for trace in making.traces} == {"Pediatrician"}
    assert (making.cases, making.left_out) == (12, {})


def test_another_guideline_is_another_trial_and_other_checks_are_not(build, tmp_path, capsys):
    build("--samples", 1)
    own = yaml.safe_load(GENERAL.read_text())
    own["perspectives"]["intuitive"]["checks"] = [{"name": "short", "at_most_words": 2}]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(own))
    making, model = build("--samples", 1, "--guideline", path)
    assert model.seen == []
    assert {json.dumps(t.checks) for t in making.traces if t.perspective == "intuitive"} == {'{"short": false}'}
    own["perspectives"]["intuitive"]["prompt"] = "Just look."
    path.write_text(yaml.safe_dump(own))
    with pytest.raises(SystemExit):
        build("--samples", 1, "--guideline", path)
    assert "was made with another guideline; remove it, or give another --out" in capsys.readouterr().err


def test_test_cases_are_never_asked_about(build, cases, tmp_path):
    rows = [json.loads(line) for line in cases.read_text().splitlines()]
    test = [
        {**rows[2], "id": "t", "split": "test", "question": "Where?"},
        {**rows[11], "id": "u", "split": "train", "question": "Where?"},
    ]
    path = tmp_path / "exam.jsonl"
    path.write_text("\n".join(map(json.dumps, test)))
    making, model = build("--samples", 1, "--exclude", f"{path}@test")
    assert making.left_out == {"no specialty": 1, f"its image is in {path}@test": 2}  # c2 and c3 are of one picture
    asked = {message.text for _, message in model.seen}
    assert not any("number 2" in text or "number 3" in text for text in asked)
    assert {trace.case for trace in making.traces} == {"c0", "c1", *(f"c{i}" for i in range(4, 11))}


def test_nor_those_of_the_files_own_test_rows(build, cases, capsys):
    """Whose pictures are not trained on either, though nobody has named them."""
    rows = [json.loads(line) for line in cases.read_text().splitlines()]
    split = [{**row, "split": "test" if row["id"] == "c2" else "train"} for row in rows]
    cases.write_text("\n".join(map(json.dumps, split)))
    making, _ = build("--samples", 1, "--split", "train")
    assert making.left_out[f"its image is in {cases}@test"] == 1  # c3 has c2's
    assert making.given.exclude == [f"{cases}@test"]


def test_failures_are_counted_and_tried_again(build, capsys):
    def fails(messages):
        if "number 4" in messages[1].text:
            raise RuntimeError("away")
        return right(messages)

    making, _ = build("--samples", 1, "--retries", 0, answer=fails)
    assert list(making.failed) == ["c4"]
    assert "1 cases failed, c4; the same command tries again" in capsys.readouterr().out
    making, model = build("--samples", 1)
    assert (making.failed, len(model.seen)) == ({}, 4)


def test_the_card_says_what_was_done(build, tmp_path):
    making, _ = build("--samples", 2, "--exclude", "clinic", "--size", 1)
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    told = yaml.safe_load(front)
    assert [one["path"] for one in told["configs"][0]["data_files"]] == [
        "data/train.parquet",
        "data/validation.parquet",
    ]
    train, held = (len(making.splits[split]) for split in ("train", "validation"))
    assert f"| Radiologist | 11 | 11 | 11 | 11 | 44 | 11 | {train} | {held} |" in body
    assert "| no specialty | 1 |" in body
    assert "| said twice | 44 |" in body
    assert "teacher: `a:teacher`" in body
    assert "Not for clinical use" in body
    assert "TO BE FILLED IN" in body


def test_an_empty_split_is_not_there(build, tmp_path):
    """`datasets` reads no data set that has one."""
    held = tmp_path / "out" / "data" / "validation.parquet"
    build("--samples", 1)
    assert held.is_file()
    build("--samples", 1, "--holdout", 0)
    assert not held.exists()
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in loaded.items()} == {"train": 44}


def test_nothing_right_is_no_data_set(build, tmp_path, capsys):
    making, _ = build("--samples", 1, answer=lambda _: "I cannot tell.")
    assert making.traces == []
    assert not (tmp_path / "out" / "README.md").exists()
    assert "hence no data set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--holdout", "1"], "holdout: 1.0 is no share"),
        (["--guideline", "none.yaml"], "guideline: 'none.yaml' cannot be read"),
        (["--split", "dev"], "split: 'dev' is not in"),
        (["--exclude", "none.jsonl"], "cases: no file 'none.jsonl'"),
        (["--max_dollars", "1"], "max_dollars: what calls cost is not known; give --prices"),
        (["--limit", "2"], "holdout: all cases share their images and cannot be split; give --holdout 0"),
    ],
)
def test_what_cannot_be_is_said_before_anybody_is_asked(build, capsys, flags, why):
    with pytest.raises(SystemExit):
        build(*flags)
    assert why in capsys.readouterr().err


def test_a_price_that_is_not_known(build, tmp_path, capsys):
    (tmp_path / "prices.yaml").write_text("other: [1, 1]\n")
    with pytest.raises(SystemExit):
        build("--max_dollars", 1, "--prices", tmp_path / "prices.yaml")
    assert "max_dollars: the price of teacher is not in --prices" in capsys.readouterr().err


def test_none_is_left(build, cases, capsys):
    with pytest.raises(SystemExit):
        build("--exclude", cases)
    assert f"none of '{cases}' is left (its image is in {cases}: 11; no specialty: 1)" in capsys.readouterr().err


def test_an_open_question_is_right_in_the_keys_own_spelling(trace, opinions):
    given = parser().parse_args(["--teacher", "a:b", "--cases", "c", "--out", "o"])
    (said,) = opinions("the  Lungs.")
    asked = trace(options=[], answer=" the lungs", opinions=[{**said, "reasoning": "Black."}])
    (one,) = right_answers(asked, read_guideline(), Making(given))
    assert one.text == "<think>Black.</think><answer>the lungs</answer>"


def test_a_letter_that_is_another_options_text_is_written_so_that_it_can_be_read(trace, opinions):
    given = parser().parse_args(["--teacher", "a:b", "--cases", "c", "--out", "o"])
    (said,) = opinions("A")
    asked = trace(options=["O", "A", "B", "AB"], answer="A", opinions=[{**said, "reasoning": "Seen."}])
    (one,) = right_answers(asked, read_guideline(), Making(given))
    assert one.text == "<think>Seen.</think><answer>B) A</answer>"


def made(perspective, passed, name):
    checks = {"one": passed > 0, "two": passed > 1}
    return ExpertTrace(name, "q", [], [], None, "a", "s", perspective, "r", name, checks, "t")


@over(st.lists(st.tuples(st.sampled_from(PERSPECTIVES), st.integers(0, 2)), max_size=12), st.integers(1, 6))
def test_what_is_picked_is_of_as_many_perspectives_as_there_are(given, most):
    traces = [made(perspective, passed, str(i)) for i, (perspective, passed) in enumerate(given)]
    dropped = collections.Counter()
    kept = picked(traces, most, dropped)
    assert len(kept) == min(most, len(traces))
    assert dropped.total() == len(traces) - len(kept)
    there, mine = ({trace.perspective for trace in some} for some in (traces, kept))
    assert len(mine) == min(most, len(there))
    for trace in kept:
        better = [
            other
            for other in traces
            if other.perspective == trace.perspective and sum(other.checks.values()) > sum(trace.checks.values())
        ]
        assert all(other in kept for other in better)


@over(st.lists(st.sets(st.integers(0, 6), max_size=2), min_size=2, max_size=10), st.floats(0.01, 0.9))
def test_no_picture_is_in_both_splits(pictures, share):
    seen = [
        Seen(LabeledCase(f"c{i}", "q", "a"), frozenset(f"picture {number}" for number in some))
        for i, some in enumerate(pictures)
    ]
    try:
        parts = parted(seen, share, 0)
    except ValueError as error:
        assert "holdout" in str(error)  # noqa: PT017  all hang together
        return
    by_id = {one.case.id: one.pictures for one in seen}
    assert sorted([*parts["train"], *parts["validation"]]) == sorted(by_id)
    train, held = (set().union(*(by_id[case] for case in part)) for part in parts.values())
    assert not train & held
    assert parts["validation"]


def test_the_number_of_an_answer_tells_its_perspective():
    assert [perspective_of(number) for number in range(1, 10)] == [*PERSPECTIVES, *PERSPECTIVES, "differential"]


def test_an_at_in_a_path_is_no_split(tmp_path, cases):
    folder = tmp_path / "a@b"
    folder.mkdir()
    own = folder / "own.jsonl"
    own.write_text(json.dumps({"question": "Where?", "answer": "here"}))
    seen = Seen.of(LabeledCase("c", "where", "here"), ImageStore(tmp_path / "images"))
    assert excluded([str(own)], 1, 0).why(seen) == f"its text is in {own}"
