"""The clinic's cases: made by a seed, with a key beside the pixels, and doctors who err as the key says."""

import dataclasses
import io
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmedagent_graph.images import ImageStore
from mmedagent_graph.prompts import SPECIALTIES
from rl.clinic.cases import (
    CLEAR,
    DIFFICULTIES,
    LURE,
    OPEN,
    OUTSIDER,
    QUESTION,
    RELIABILITY,
    Key,
    make_cases,
    make_image,
    read_key,
)
from rl.clinic.drawing import FINDINGS

N = 3000
INSIDER = "Surgeon"


def near(count, n, p, sigmas=4.5):
    """Whether a count of n trials is what chance p can give."""
    return abs(count - n * p) <= sigmas * math.sqrt(n * p * (1 - p)) + 1


def key(difficulty="contested", salt=0, **fields):
    default = {"finding": "cyst", "specialty": INSIDER, "lure": "scar", "clear": True}
    return Key(**{**default, "difficulty": difficulty, "salt": salt, **fields})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ImageStore(tmp_path_factory.mktemp("clinic"))


@pytest.fixture(scope="module")
def cases(store):
    return list(make_cases(400, seed=3, store=store))


def test_a_seed_makes_the_same_bytes(cases, store, tmp_path):
    other = ImageStore(tmp_path)
    again = list(make_cases(20, seed=3, store=other))
    assert again == cases[:20]  # which are the first 20 of any more
    for case in again:
        assert other.get(case.images[0]) == store.get(case.images[0])
    assert list(make_cases(20, seed=4, store=other)) != again


def test_every_image_is_another(cases):
    assert len({case.images[0] for case in cases}) == len({case.id for case in cases}) == len(cases)


def test_a_case_says_what_its_key_says(cases, store):
    for case in cases:
        assert case.key == read_key(store.get(case.images[0]))
        assert (case.answer, case.specialty) == (case.key.finding, case.key.specialty)
        assert case.key.lure in set(FINDINGS) - {case.key.finding}
        assert sorted(case.options) in ([], sorted(FINDINGS))
        assert (case.question, case.context) == (QUESTION, None)
        assert "key" not in vars(case.given())


def test_cases_come_in_their_shares(cases):
    n = len(cases)
    keys = [case.key for case in cases]
    assert near(sum(k.clear for k in keys), n, CLEAR)
    assert near(sum(not case.options for case in cases), n, OPEN)
    for difficulty, share in DIFFICULTIES.items():
        assert near(sum(k.difficulty == difficulty for k in keys), n, share)
    for finding in FINDINGS:
        assert near(sum(k.finding == finding for k in keys), n, 1 / 4)
        assert near(sum(k.lure == finding for k in keys), n, 1 / 4)
    for specialty in SPECIALTIES:
        assert near(sum(k.specialty == specialty for k in keys), n, 1 / 7)
    assert len({tuple(case.options) for case in cases if case.options}) == 24  # in every order
    places = Counter(case.options.index(case.answer) for case in cases if case.options)
    assert all(near(count, sum(places.values()), 1 / 4) for count in places.values())
    assert sorted(places) == [0, 1, 2, 3]


def test_the_key_is_in_the_file_and_not_in_the_pixels():
    data = make_image(key(), np.random.default_rng(0))
    assert read_key(data) == key()
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert read_key(buffer.getvalue()) is None
    other = make_image(key("misleading", salt=9, lure="nodule"), np.random.default_rng(0))
    assert other != data
    with Image.open(io.BytesIO(other)) as image:  # nothing of difficulty, lure or salt is drawn
        assert (np.asarray(image.convert("RGB")) == pixels).all()


def test_a_jpeg_has_no_key():
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "JPEG")
    assert read_key(buffer.getvalue()) is None


def seen(difficulty, specialty=INSIDER, doctor=1):
    return [key(difficulty, salt).seen_by(doctor, specialty) for salt in range(N)]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize(("specialty", "share"), [(INSIDER, 1), ("Radiologist", OUTSIDER)])
def test_doctors_are_as_reliable_as_documented(difficulty, specialty, share):
    for doctor in (1, 2, 3):
        said = Counter(seen(difficulty, specialty, doctor))
        reliability = RELIABILITY[difficulty] * share
        assert set(said) <= set(FINDINGS)
        assert near(said["cyst"], N, reliability)
        assert near(said["scar"], N, (1 - reliability) * LURE)
        for other in ("nodule", "normal"):
            assert near(said[other], N, (1 - reliability) * (1 - LURE) / 2)


@pytest.mark.parametrize("difficulty", ["settled", "contested"])  # in misleading cases hardly anybody is right
def test_outsiders_are_less_reliable(difficulty):
    insider, outsider = (seen(difficulty, specialty).count("cyst") for specialty in (INSIDER, "Radiologist"))
    assert outsider < 0.9 * insider


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_doctors_are_independent_given_the_case(difficulty):
    doctors = {doctor: seen(difficulty, doctor=doctor) for doctor in (1, 2, 3)}
    chance = {finding: {"cyst": RELIABILITY[difficulty]}.get(finding) for finding in FINDINGS}
    chance["scar"] = (1 - chance["cyst"]) * LURE
    chance["nodule"] = chance["normal"] = (1 - chance["cyst"]) * (1 - LURE) / 2
    for a, b in itertools.combinations(doctors, 2):
        both = Counter(zip(doctors[a], doctors[b], strict=True))
        for one, other in itertools.product(FINDINGS, repeat=2):
            assert near(both[one, other], N, chance[one] * chance[other])
    all_right = sum(said == ("cyst",) * 3 for said in zip(*doctors.values(), strict=True))
    assert near(all_right, N, chance["cyst"] ** 3)


def test_a_doctor_asked_again_says_the_same_and_cases_differ():
    assert key().seen_by(1, INSIDER) == key().seen_by(1, INSIDER)
    for change in ({"salt": 1}, {"clear": False}, {"lure": "nodule"}):
        answers = [key(salt=2 * i).seen_by(1, INSIDER) == "cyst" for i in range(40)]
        others = [key(**{"salt": 2 * i, **change}).seen_by(1, INSIDER) == "cyst" for i in range(40)]
        assert answers != others


def test_faint_cases_are_the_same_cases_and_none_is_lost_in_noise(cases, store):
    faint = list(make_cases(60, seed=3, store=store, faint=True))
    for plain, other in zip(cases, faint, strict=False):
        assert other.key == dataclasses.replace(plain.key, clear=True)
        assert (other.answer, other.options, other.specialty) == (plain.answer, plain.options, plain.specialty)
        same = plain.answer == "normal" and plain.key.clear  # nothing to be faint
        assert (other.images == plain.images) == same
    assert {case.key.clear for case in faint} == {True}


def test_cases_of_one_specialty_are_the_same_patients_elsewhere(cases, store):
    skin = list(make_cases(60, seed=3, store=store, specialty="Dermatologist"))
    assert {case.specialty for case in skin} == {case.key.specialty for case in skin} == {"Dermatologist"}
    assert [case.answer for case in skin] == [case.answer for case in cases[:60]]
    assert len({case.specialty for case in cases[:60]}) == 7
