"""Duplicates: what looks different and is the same is found, what is merely alike is not."""

import dataclasses
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rl.datasets import LabeledCase
from rl.duplicates import RUN, TELLING, Seen, Tests, Texts, distinct, picture_of, words_of

WORD = st.text(st.sampled_from(string.ascii_lowercase), min_size=1, max_size=6)
WORDS = st.lists(WORD, min_size=1, max_size=30)
BETWEEN = st.sampled_from([" ", "  ", "\n", ", ", " - ", "... ", "\t(", ") "])
OPTIONS = ["Type A, early", "Type B", "none"]
VIGNETTE = (
    "A 45-year-old man has had a cough for three weeks, night sweats and weight loss. "
    "Which of the following is the most likely diagnosis?"
)


def picture(path, seed=0, **saved):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)).save(path, **saved)
    return path


def case(name, question=VIGNETTE, images=(), options=tuple(OPTIONS), **fields):
    return LabeledCase(name, question, options[0] if options else "flu", list(options), list(images), **fields)


def jaccard(one, other):
    """By its definition, of whole sets."""
    runs = [{tuple(w[i : i + RUN]) for i in range(max(1, len(w) - RUN + 1))} for w in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@given(WORDS, st.data())
def test_a_copy_with_other_case_punctuation_and_white_space_is_found(words, data):
    texts = Texts()
    texts.add("key", " ".join(words))
    copy = "".join(
        data.draw(st.sampled_from([word, word.upper(), word.title()])) + data.draw(BETWEEN) for word in words
    )
    assert texts.has("key", f"«{copy}»?!")
    assert not texts.has("another key", copy)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=14), min_size=1, max_size=4), st.data())
def test_it_is_the_jaccard_index_of_all_that_were_added(added, data):
    texts = Texts()
    for words in added:
        texts.add(0, " ".join(words))
    asked = data.draw(st.sampled_from(added).flatmap(st.permutations) | st.lists(st.sampled_from("abcd"), min_size=1))
    assert texts.has(0, " ".join(asked)) == any(jaccard(words, asked) >= 0.8 for words in added)


def test_one_word_of_a_long_text_is_nothing_and_of_a_short_one_is_everything():
    words = [f"w{i}" for i in range(60)]
    texts = Texts()
    texts.add(0, " ".join(words))
    assert texts.has(0, " ".join([*words[:-1], "other"]))  # 55 runs of 57
    assert texts.has(0, " ".join([*words[:30], "other", *words[31:]]))  # 51 runs of 61: 0.84
    assert not texts.has(0, " ".join([*words[:20], "other", *words[21:40], "other", *words[41:]]))  # 46 of 66
    texts.add(0, "left lung or right lung")
    assert not texts.has(0, "left lung or left lung")


@given(st.text())
def test_words_do_not_depend_on_how_they_are_written(text):
    assert words_of(words := " ".join(words_of(text))) == words.split()


def test_the_same_pixels_are_one_picture(tmp_path, images):
    info = PngInfo()
    info.add_text("name", "other")
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", pnginfo=info, compress_level=0)]
    files += [picture(tmp_path / "c.bmp"), picture(tmp_path / "d.tiff")]
    other = picture(tmp_path / "e.png", seed=1)
    assert len({file.read_bytes() for file in files}) == 4
    assert len({picture_of(images.put(file), images) for file in files}) == 1
    assert picture_of(images.put(files[0]), images) != picture_of(images.put(other), images)


def test_the_same_bytes_of_another_shape_are_another_picture(tmp_path, images):
    for name, size in (("wide", (2, 8)), ("high", (8, 2))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    assert len({picture_of(images.put(tmp_path / f"{name}.png"), images) for name in ("wide", "high")}) == 2


@pytest.fixture
def tests(tmp_path, images):
    tests = Tests()
    tests.add("exam", [case("t", images=[picture(tmp_path / "test.png")]), case("no picture", "Why?")], images)
    return tests


def why(tests, store, question=VIGNETTE, **fields):
    return tests.why(Seen.of(case("c", question, **fields), store))


def test_a_copied_question_is_found(tests, images):
    assert why(tests, images, VIGNETTE.upper().replace(",", " ;")) == "its text is in exam"
    turned = [f" {option.lower()}." for option in reversed(OPTIONS)]
    assert why(tests, images, options=turned) == "its text is in exam"


def test_a_copied_question_about_another_picture_is_found(tests, images, tmp_path):
    assert why(tests, images, images=[picture(tmp_path / "new.png", 1)]) == "its text is in exam"


def test_another_question_about_the_same_picture_is_excluded_by_the_picture(tests, images, tmp_path):
    copy = picture(tmp_path / "copy.bmp")
    seen = Seen.of(case("c", "Is it large?", [copy], ("yes", "no")), images)
    texts = Texts()
    texts.add(seen.options, VIGNETTE)
    assert not texts.has(seen.options, seen.text)
    assert tests.why(seen) == "its image is in exam"


def test_a_short_question_is_only_a_duplicate_without_a_picture(tests, images, tmp_path):
    assert why(tests, images, "why") == "its text is in exam"
    assert why(tests, images, "why", images=[picture(tmp_path / "new.png", 1)]) is None
    assert len(words_of(VIGNETTE)) >= TELLING


def test_where_images_are_split_a_template_is_asked_of_other_pictures(images, tmp_path):
    """Cases of one's own, which a run has split by image; without a picture the words still tell."""
    held_out = Tests(by_picture=True)
    held_out.add("held out", [case("t", images=[picture(tmp_path / "test.png")]), case("no picture", "Why?")], images)
    assert why(held_out, images, images=[picture(tmp_path / "new.png", 1)]) is None
    assert why(held_out, images, images=[picture(tmp_path / "copy.bmp")]) == "its image is in held out"
    assert why(held_out, images, "why") == "its text is in held out"


@pytest.mark.parametrize("options", [OPTIONS[:-1], [*OPTIONS[:-1], "abscess"], [], ["yes", "no"]])
def test_a_long_question_is_found_whatever_may_be_chosen(tests, images, options):
    assert why(tests, images, options=options) == "its text is in exam"


@given(st.integers(9, TELLING + 20), st.booleans())
def test_a_word_more_or_less_hides_nothing(length, longer):
    """Also where it makes a telling question of one that is not."""
    words = [f"word{n}" for n in range(length)]
    asked, known = (words, words[:-1]) if longer else (words[:-1], words)
    tests = Tests()
    tests.add("exam", [case("t", " ".join(known))], None)
    assert tests.why(Seen(case("c", " ".join(asked)), frozenset())) == "its text is in exam"


def test_a_short_one_with_other_options_is_another(tests, images):
    assert why(tests, images, "why", options=("yes", "no")) is None


def test_the_context_counts(tests, images):
    first, second = VIGNETTE.split(". ")
    assert why(tests, images, second, context=first) == "its text is in exam"
    assert why(tests, images, second, context="A girl of 9 has had no fever") is None


def test_a_test_image_that_cannot_be_read_is_counted(images, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no image")
    readable = picture(tmp_path / "a.png")
    tests = Tests()
    assert tests.add("exam", [case("t", "Which?", [tmp_path / "torn.png", readable])], images) == 1
    assert why(tests, images, "Where?", images=[readable]) == "its image is in exam"


def test_a_case_is_asked_once(images, tmp_path):
    one, other = picture(tmp_path / "one.png"), picture(tmp_path / "other.png", 1)
    cases = [
        case("first", "Which side?", [one]),
        case("again", "which  SIDE", [picture(tmp_path / "same.bmp")]),
        case("other picture", "Which side?", [other]),
        case("other question", "Which organ?", [one]),
        case("other options", "Which side?", [one], ("left", "right")),
    ]
    kept = distinct([Seen.of(one, images) for one in cases])
    assert [seen.case.id for seen in kept] == ["first", "other picture", "other question", "other options"]


@given(st.lists(st.sampled_from(["a b c d e f", "A, b, c, d, e, f!", "g h", "G H?", "i"]), max_size=8))
def test_what_is_left_has_no_pair(questions):
    kept = distinct([Seen(case(str(i), question), frozenset()) for i, question in enumerate(questions)])
    assert len(kept) == len({tuple(words_of(question)) for question in questions})


def test_a_case_keeps_what_it_is(images, tmp_path):
    given = case("c", images=[picture(tmp_path / "a.png")], specialty="Surgeon")
    seen = Seen.of(given, images).case
    assert dataclasses.replace(seen, images=given.images) == given
    assert seen.images == [images.put(given.images[0])]
