"""Cases of one's own: what the JSONL may say, errors that name the place, and a split that shares no image."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import rl
from rl.cohort import cohorts, hold_out, own_cohort, panel, rehearsed, shared_images
from rl.datasets import LabeledCase, read_cases
from rl.recipe import Recipe
from rl.train_sft import Imitation

VQA_RAD = Path(rl.__file__).parents[1].parent / "shared" / "data" / "vqa_rad" / "cases.jsonl"
ROW = {"question": "Is it?", "answer": "yes", "options": ["yes", "no"]}
quiet = settings(deadline=None, max_examples=60)


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows):
        path = tmp_path / "own.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def test_every_field_is_read(jsonl, tmp_path):
    touch(tmp_path / "images" / "a.png")
    row = {**ROW, "id": 7, "image": "images/a.png", "context": "Fever.", "specialty": "Surgeon", "licence": "CC0"}
    assert read_cases(jsonl(row)) == [
        LabeledCase("7", "Is it?", "yes", ["yes", "no"], [tmp_path / "images" / "a.png"], "Fever.", "Surgeon")
    ]


def test_most_fields_may_be_missing(jsonl):
    first, second = read_cases(jsonl({"question": "Where?", "answer": "left"}, "", {**ROW, "options": None}))
    assert first == LabeledCase("own-1", "Where?", "left")
    assert (second.id, second.options, second.images) == ("own-3", [], [])


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_lie_beside_the_file(jsonl, tmp_path):
    elsewhere = tmp_path / "x" / "d.png"
    touch(tmp_path / "a.png", tmp_path / "b" / "c.png", elsewhere)
    both, absolute, none = read_cases(
        jsonl({**ROW, "images": ["a.png", "b/c.png"]}, {**ROW, "image": str(elsewhere)}, {**ROW, "image": None})
    )
    assert both.images == [tmp_path / "a.png", tmp_path / "b" / "c.png"]
    assert absolute.images == [elsewhere]
    assert none.images == []


WRONG = {
    "no such image": ({**ROW, "image": "nowhere.png"}, ["image", "nowhere.png", "is not there"]),
    "one option": ({**ROW, "options": ["yes"]}, ["options", "give two or more"]),
    "equal options": ({**ROW, "options": ["yes", "Yes."]}, ["options", "must differ"]),
    "no JSON": ("{not json", ["not JSON"]),
    "cut off": ('{"question": "Is it?"', ["not JSON"]),
    "no object": ("[1, 2]", ["a case is a JSON object", "list"]),
    "no question": ({"answer": "yes"}, ["question", "None"]),
    "blank question": ({**ROW, "question": "  "}, ["question", "'  '"]),
    "no answer": ({"question": "Is it?", "options": ["yes", "no"]}, ["answer", "None"]),
    "answer is a number": ({**ROW, "answer": 1}, ["answer", "1", "text"]),
    "answer is no option": ({**ROW, "answer": "maybe"}, ["answer", "'maybe'", "'yes', 'no'"]),
    "answer is a letter": ({**ROW, "answer": "A"}, ["answer", "'A'", "'yes', 'no'"]),
    "options are a text": ({**ROW, "options": "yes or no"}, ["options", "'yes or no'"]),  # and not its letters
    "images are a text": ({**ROW, "images": "a.png"}, ["images", "'a.png'"]),  # and not its letters
    "image is a number": ({**ROW, "image": 5}, ["image", "5"]),
}


@pytest.mark.parametrize(("row", "named"), WRONG.values(), ids=WRONG.keys())
def test_an_error_names_file_line_and_field(jsonl, row, named):
    path = jsonl(ROW, row, ROW)
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert [part for part in [f"{path}:2: ", *named] if part not in str(error.value)] == []


def test_two_cases_cannot_have_one_id(jsonl):
    """A run keeps the upstream of a case by its id: the second would silently get the first one's."""
    with pytest.raises(ValueError, match=r"own.jsonl:2: .*id.*'a'"):
        read_cases(jsonl({**ROW, "id": "a"}, {**ROW, "id": "a"}))


def test_an_id_may_be_null(jsonl):
    assert [case.id for case in read_cases(jsonl({**ROW, "id": None}, {**ROW, "id": None}))] == ["own-1", "own-2"]


def test_there_must_be_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"cases: no file '.*none\.jsonl'.*JSONL"):
        read_cases(tmp_path / "none.jsonl")


def test_a_split_is_selected_and_a_wrong_one_lists_them(jsonl):
    path = jsonl({**ROW, "split": "train"}, {**ROW, "split": "test"}, {**ROW, "split": "train"})
    assert [case.id for case in read_cases(path, "train")] == ["own-1", "own-3"]
    assert len(read_cases(path)) == 3
    with pytest.raises(ValueError, match=r"split: 'dev' is not in '.*own\.jsonl'; it has test, train"):
        read_cases(path, "dev")


some_text = st.text(min_size=1, max_size=8).filter(str.strip)


@pytest.fixture(scope="session")
def new_file(tmp_path_factory):
    folder, number = tmp_path_factory.mktemp("cases"), itertools.count()
    return lambda: folder / f"{next(number)}.jsonl"


@quiet
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"question": some_text, "answer": some_text},
            optional={"context": st.none() | some_text, "specialty": st.none() | some_text, "options": st.none()},
        ),
        max_size=4,
    ),
    escaped=st.booleans(),
)
@example(rows=[{"question": "one\u2028two\x85three", "answer": "x"}], escaped=False)  # line ends to str.splitlines only
def test_any_text_comes_back_as_it_was_written(new_file, rows, escaped):
    path = new_file()
    path.write_text("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows), encoding="utf-8")
    read = [(c.question, c.answer, c.context, c.specialty, c.options) for c in read_cases(path)]
    assert read == [(r["question"], r["answer"], r.get("context"), r.get("specialty"), []) for r in rows]


def test_what_is_given_to_the_graph_holds_no_answer():
    case = LabeledCase("SECRET-1", "Where?", "SECRET", images=["a.png"], context="Fever.", specialty="SECRET-2")
    given = case.given()
    assert (given.question, given.options, given.images, given.context) == ("Where?", [], ["a.png"], "Fever.")
    assert "SECRET" not in repr(given)
    assert "SECRET" not in repr(vars(given))


def test_where_there_are_options_the_key_is_one_of_many():
    one, other = (LabeledCase("a", "Is it?", answer, ["yes", "no"]) for answer in ("yes", "no"))
    assert one.given() == other.given()
    assert [case.options.index(case.answer) for case in (one, other)] == [0, 1]


def test_free_text_is_skipped_and_counted_or_kept(jsonl):
    path = jsonl(ROW, {"question": "Where?", "answer": "left"}, ROW)
    skipped, kept = own_cohort(path, None, "skip"), own_cohort(path, None, "grade")
    assert ([case.id for case in skipped.cases], skipped.skipped) == (["own-1", "own-3"], 1)
    assert (len(kept.cases), kept.skipped) == (3, 0)
    with pytest.raises(ValueError, match=r"cases: .*own\.jsonl.*--free_text grade"):
        own_cohort(jsonl({"question": "Where?", "answer": "left"}), None, "skip")


def test_a_case_without_a_key_says_so(jsonl):
    """And is taken only where tiers need no key; a missing `answer` is a mistake all the same."""
    path = jsonl(ROW, {**ROW, "answer": None}, {"question": "Where?", "answer": None})
    assert [case.answer for case in read_cases(path)] == ["yes", None, None]
    assert [case.answer for case in own_cohort(path, None, "skip", None).cases] == ["yes", None]
    with pytest.raises(ValueError, match=r"cases: 2 rows have no answer key \('own-2' first\); leave them out$"):
        own_cohort(path, None, "skip")


TRIAGE = {"nodes": ["triage"], "stages": ["mixed"], "stage_steps": [1], "betas": [0.0]}
WELCOME = {
    "tiers by disagreement": Recipe(tiers="disagreement", graders=["format"]),
    "triage, by its labels": Recipe(**TRIAGE),
    "triage, imitating its labels": Imitation(nodes=["triage"]),
}


@pytest.mark.parametrize("recipe", WELCOME.values(), ids=WELCOME.keys())
def test_cases_without_a_key_are_taken_where_nothing_needs_one(jsonl, tmp_path, images, recipe):
    learn, held, _ = cohorts(dataclasses.replace(recipe, cases=str(without_keys(jsonl, tmp_path, 6))), 0, images)
    assert [case.answer for case in [*learn, *held]] == [None] * 6


def test_what_is_rehearsed_has_a_label_and_no_held_out_picture(jsonl, tmp_path, images):
    for name in ("red", "green", "blue"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "copy.bmp")
    label = {**ROW, "answer": None, "specialty": "Surgeon"}
    rows = [{**label, "image": f"{name}.png"} for name in ("red", "green", "blue")] + [{**label, "image": "copy.bmp"}]
    path = jsonl(*rows, {**label, "image": "green.png", "specialty": None})
    held_out = read_cases(path)[:1]
    recipe = Imitation(nodes=["specialist"], rehearse=str(path), rehearse_share=0.5)
    found = rehearsed(recipe, 10, 0, images, held_out)
    assert sorted(image.name for case in found for image in case.images) == ["blue.png", "green.png"]
    as_data = [dataclasses.replace(case, images=[images.put(image) for image in case.images]) for case in held_out]
    assert rehearsed(recipe, 10, 0, images, as_data) == found
    assert len(rehearsed(recipe, 1, 0, images, held_out)) == 1
    with pytest.raises(ValueError, match=r"rehearse: no row of .* has a specialty and is not held out"):
        rehearsed(recipe, 10, 0, images, read_cases(path))


def test_another_split_is_rehearsed_by_its_name(jsonl, images):
    label = {**ROW, "specialty": "Surgeon"}
    other = {**label, "specialty": "Radiologist", "id": "other", "split": "train"}
    path = jsonl(other, *({**label, "id": name, "split": name} for name in ("train", "test", "more")))

    def ids(rehearse, **fields):
        recipe = Imitation(nodes=["specialist"], rehearse=str(rehearse), rehearse_share=0.5, **fields)
        return sorted(case.id for case in rehearsed(recipe, 10, 0, images, []))

    assert ids(path, cases=str(path), split="train") == ["other", "train"]
    assert ids(path, cases=str(path), split="train", specialty="Surgeon") == ["other"]  # it learns from the others
    assert ids(f"{path}@more", cases=str(path), split="train") == ["more"]
    assert ids(f"{path.parent}/./{path.name}@train", cases=str(path), split="train", specialty="Surgeon") == ["other"]
    assert ids(path) == ["other", "train"]  # of other cases, too, nothing is rehearsed that is to be measured on
    with pytest.raises(ValueError, match=r"split: 'train' is not in '.*'; it has more, test"):
        ids(jsonl(*({**label, "id": name, "split": name} for name in ("test", "more"))))
    with pytest.raises(ValueError, match=r"rehearse: 'clinic' is made up, and '.*' is not; give such cases"):
        ids("clinic", cases=str(path))


def test_the_clinics_faint_cases_are_for_whoever_asks(images):
    sizes = {"train_size": 3, "eval_size": 2}
    for recipe, kind in (
        (Recipe(**sizes), "clinic"),
        (Recipe(cases="faint", **sizes), "faint"),
        (Imitation(nodes=["specialist"], **sizes), "faint"),
    ):
        learn, held, _ = cohorts(recipe, 0, images)
        assert (len(learn), len(held)) == (3, 2)
        assert {case.id.partition("-")[0] for case in (*learn, *held)} == {kind}
    assert len(panel([], "faint", "any")) == 3
    with pytest.raises(ValueError, match="split: 'test', but the clinic's cases have no splits"):
        Recipe(cases="faint", split="test")


NEED_KEYS = {
    "tiers by the key": (Recipe(), "or give --tiers disagreement"),
    "triage, paid for the outcome": (Recipe(**TRIAGE, outcome_weight=0.5), "leave them out$"),
    "imitation": (Imitation(), "leave them out$"),
}


@pytest.mark.parametrize(("recipe", "remedy"), NEED_KEYS.values(), ids=NEED_KEYS.keys())
def test_elsewhere_they_are_refused_with_what_helps(jsonl, tmp_path, images, recipe, remedy):
    path = without_keys(jsonl, tmp_path, 2, ROW)
    with pytest.raises(ValueError, match=f"cases: 2 rows have no answer key.*{remedy}"):
        cohorts(dataclasses.replace(recipe, cases=str(path)), 0, images)


def test_where_no_case_can_be_graded_nobody_is_asked(jsonl, tmp_path, images):
    """Every reward would be None; one case with a key, or a grader that needs none, is something to learn from."""
    recipe = Recipe(tiers="disagreement", cases=str(without_keys(jsonl, tmp_path, 6)), graders=["format", "accuracy"])
    with pytest.raises(ValueError, match=r"cases: no row of '.*' has an answer key, without which accuracy cannot"):
        cohorts(recipe, 0, images)
    cohorts(dataclasses.replace(recipe, graders=["format", "accuracy=0"]), 0, images)
    cohorts(dataclasses.replace(recipe, cases=str(without_keys(jsonl, tmp_path, 6, ROW, ROW))), 0, images)


def without_keys(jsonl, folder, count, *others):
    """Rows without an answer key, each with a picture and a label of its own; and others."""
    for i in range(count):
        (folder / f"{i}.png").write_bytes(b"picture %d" % i)
    rows = [{**ROW, "answer": None, "image": f"{i}.png", "specialty": "Radiologist"} for i in range(count)]
    return jsonl(*rows, *others)


def case(number, images):
    return LabeledCase(str(number), "Is it?", "yes", ["yes", "no"], [Path(f"/{image}.png") for image in images])


def settings_of(path, **fields):
    return Recipe(cases=str(path), **fields)


def test_a_recipe_says_who_is_trained_on_and_who_is_held_out(jsonl, tmp_path, images, capsys):
    touch(*(tmp_path / f"{i}.png" for i in range(6)))
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"picture %d" % (i % 5))  # 0 and 5 are one picture
    path = jsonl(*({**ROW, "image": f"{i}.png", "split": "train" if i < 4 else "test"} for i in range(6)))
    learn, held, skipped = cohorts(settings_of(path, split="train", eval_split="test"), 0, images)
    assert ([case.id for case in learn], [case.id for case in held]) == (
        ["own-1", "own-2", "own-3", "own-4"],
        ["own-5", "own-6"],
    )
    assert skipped == 0
    assert "note: 1 images are in both train and test" in capsys.readouterr().out
    learn, held, _ = cohorts(settings_of(path, split="train", holdout=0.3), 0, images)
    assert (len(learn), len(held)) == (3, 1)
    assert "note" not in capsys.readouterr().out


def test_the_same_picture_under_two_names_is_held_out_as_one(jsonl, tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"picture %d" % (i % 4))
    cases = read_cases(jsonl(*({**ROW, "image": f"{i}.png"} for i in range(8))))
    learn, held = hold_out(cases, 0.5, seed=0)
    assert shared_images(learn, held) == 0
    assert len(learn) == len(held) == 4


def images_of(cases):
    return {image for case in cases for image in case.images}


@quiet
@given(
    pictures=st.lists(st.lists(st.integers(0, 9), max_size=3, unique=True), max_size=20),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_held_out_cases_share_no_image_with_the_others(pictures, share, seed):
    cases = [case(i, images) for i, images in enumerate([*pictures, [90], [91]])]  # so that they can be split
    learn, held = hold_out(cases, share, seed)
    assert sorted([*learn, *held], key=cases.index) == cases
    assert learn
    assert held
    assert not images_of(learn) & images_of(held)
    assert hold_out(cases, share, seed) == (learn, held)


def test_a_share_of_the_images_is_held_out_with_all_their_questions():
    cases = [case(i, [i % 40]) for i in range(120)]  # three questions each
    learn, held = hold_out(cases, 0.25, seed=0)
    assert (len(images_of(held)), len(held), len(learn)) == (10, 30, 90)
    assert learn == [one for one in cases if one not in held]  # in their order
    assert images_of(hold_out(cases, 0.25, seed=1)[1]) != images_of(held)


def test_something_is_left_to_train_on():
    """Two images: however large the share, one is held out and one is not."""
    cases = [case(i, [i]) for i in range(2)]
    assert [len(part) for part in hold_out(cases, 0.9, seed=0)] == [1, 1]


@pytest.fixture(scope="module")
def vqa_rad():
    if not VQA_RAD.is_file():
        pytest.skip(f"NOT TESTED on real questions: {VQA_RAD} is not there")
    return read_cases(VQA_RAD)


def test_vqa_rad_loads(vqa_rad):
    assert (len(read_cases(VQA_RAD, "train")), len(read_cases(VQA_RAD, "test"))) == (1797, 451)
    assert len(vqa_rad) == len({case.id for case in vqa_rad}) == 2248
    for case in vqa_rad:
        assert case.given().options == case.options
        assert all(image.is_file() for image in case.images)
        assert not case.options or case.answer in case.options


def test_vqa_rad_is_held_out_by_image(vqa_rad):
    learn, held = hold_out(vqa_rad, 0.1, seed=0)
    assert len(images_of(held)) == round(0.1 * len(images_of(vqa_rad)))
    assert not images_of(learn) & images_of(held)
