"""A simulated specialist knows its number, its prompt and nothing else."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from mmedagent_graph import SPECIALTIES
from mmedagent_graph.answers import read_answer, split_reasoning, well_formed
from mmedagent_graph.prompts import specialist_messages
from rl.clinic.cases import Key, make_image
from rl.clinic.doctors import DOCTORS, GUIDELINE, TEACHER_ERRS, ClinicDoctor, ClinicTeacher
from rl.clinic.drawing import FINDINGS
from rl.guidelines import PERSPECTIVES, checks_passed, guided, read_guideline


def key(salt):
    return Key("cyst", "Surgeon", "contested", "scar", True, salt)


def prompt(images, data, specialty, options=FINDINGS):
    refs = [images.put(image) for image in data]
    fields = {"question": "What?", "options": list(options), "images": refs, "context": None}
    return specialist_messages({**fields, "specialty": specialty, "doctor": 1}, images)


@pytest.fixture(scope="module")
def pictures():
    return [make_image(key(salt), np.random.default_rng(salt)) for salt in range(6)]


@pytest.mark.parametrize("specialty", SPECIALTIES)
@pytest.mark.parametrize("options", [FINDINGS, ()], ids=["options", "free text"])
def test_a_doctor_answers_from_image_and_specialty(images, pictures, specialty, options):
    for salt, data in enumerate(pictures):
        for doctor in DOCTORS:
            said = doctor.invoke(prompt(images, [data], specialty, options))
            assert said.text == f"<answer>{key(salt).seen_by(doctor.doctor, specialty)}</answer>"


def test_specialty_image_and_number_all_matter(images, pictures):
    def said(doctor, specialty, data):
        return ClinicDoctor(doctor=doctor).invoke(prompt(images, [data], specialty)).text

    assert len({said(1, "Surgeon", data) for data in pictures}) > 1
    assert any(said(1, "Surgeon", data) != said(2, "Surgeon", data) for data in pictures)
    assert any(said(1, "Surgeon", data) != said(1, "Radiologist", data) for data in pictures)


def test_the_panel_has_three_doctors():
    assert [doctor.doctor for doctor in DOCTORS] == [1, 2, 3]


def test_it_serves_async_callers(images, pictures):
    messages = prompt(images, pictures[:1], "Surgeon")
    assert asyncio.run(DOCTORS[0].ainvoke(messages)).text == DOCTORS[0].invoke(messages).text


def test_a_foreign_image_is_an_error(images, pictures, png):
    foreign, copied = png((3, 3, 3)), io.BytesIO()
    Image.open(io.BytesIO(pictures[0])).convert("RGB").save(copied, "PNG")  # the pixels alone
    for data in ([foreign], [copied.getvalue()], [foreign, pictures[0]], []):
        with pytest.raises(ValueError, match="only read images that the clinic made"):
            DOCTORS[0].invoke(prompt(images, data, "Surgeon"))


@pytest.mark.parametrize("name", PERSPECTIVES)
def test_the_teacher_reasons_as_it_is_told_and_mostly_sees_what_is_there(images, name):
    guideline, teacher, right = read_guideline(GUIDELINE), ClinicTeacher(), 0
    for salt in range(120):
        plain = prompt(images, [make_image(key(salt), np.random.default_rng(salt))], "Surgeon")
        said = teacher.invoke(guided(plain, guideline.text(name, "Surgeon"))).text
        assert well_formed(said)
        passed = checks_passed(split_reasoning(said), FINDINGS, guideline.perspectives[name])
        assert passed
        assert all(passed.values()), said
        answer = FINDINGS[read_answer(said, FINDINGS)]
        assert answer in ("cyst", "scar")  # what is there, or the lure
        right += answer == "cyst"
    assert abs(right / 120 - (1 - TEACHER_ERRS)) < 0.1


def test_the_checks_tell_the_perspectives_apart(images, pictures):
    guideline = read_guideline(GUIDELINE)
    for name in PERSPECTIVES:
        plain = prompt(images, pictures[:1], "Surgeon")
        reasoning = split_reasoning(ClinicTeacher().invoke(guided(plain, guideline.text(name, "Surgeon"))).text)
        fits = {other for other in PERSPECTIVES if all(_checked(guideline, other, reasoning))}
        assert fits == {name}


def _checked(guideline, name, reasoning):
    return checks_passed(reasoning, FINDINGS, guideline.perspectives[name]).values()


def test_the_teacher_needs_its_own_guideline(images, pictures):
    with pytest.raises(ValueError, match=r"give --guideline .*clinic\.yaml"):
        ClinicTeacher().invoke(prompt(images, pictures[:1], "Surgeon"))
