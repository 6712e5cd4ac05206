"""The benchmarks: small files in each hub's exact layout and schema, and real ones where they are at hand."""

import dataclasses
import io
import json
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

import rl
from mmedagent_graph.answers import same_text
from mmedagent_graph.images import ImageStore
from rl.datasets import BENCHMARKS, read_benchmark
from rl.datasets.options import YES_NO, built, drawn, either_or, named_in

SHARED = Path(rl.__file__).parents[1].parent / "shared" / "data"
TEXT = Value("string")
VQA = Features({"image": Image(), "question": TEXT, "answer": TEXT})
MMMU = Features(
    {
        **dict.fromkeys(("id", "question", "options", "explanation"), TEXT),
        **{f"image_{n}": Image() for n in range(1, 8)},
        **dict.fromkeys(("img_type", "answer", "topic_difficulty", "question_type", "subfield"), TEXT),
    }
)


@pytest.fixture
def store(tmp_path):
    return ImageStore(tmp_path / "store")


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Picture.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, rows: list[dict], features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(columns, features=features).to_parquet(str(path))


def zipped(path: Path, files: dict[str, bytes | str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def vqa(folder: Path, split: str, rows: list[tuple[int, str, str]]) -> str:
    cells = [{"image": {"bytes": picture(shade), "path": None}, "question": q, "answer": a} for shade, q, a in rows]
    parquet(folder / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet", cells, VQA)
    return str(folder)


@pytest.mark.parametrize(("name", "specialty"), [("vqa_rad", "Radiologist"), ("path_vqa", "Pathologist")])
def test_what_is_answered_by_yes_or_no_is_closed(name, specialty, tmp_path, store):
    rows = [(1, "Is it?", "Yes"), (2, "Where?", "in the left lobe "), (1, "Was it?", "no")]
    folder = vqa(tmp_path / "copy", "test", rows)
    read = read_benchmark(f"{name}:{folder}", store)
    yes, no = read.cases
    assert (yes.answer, no.answer, yes.options, no.options) == ("yes", "no", ["yes", "no"], ["yes", "no"])
    assert yes.images == no.images != []  # one picture, kept once
    assert store.open(yes.images[0]).getpixel((0, 0)) == (1, 1, 1)
    assert yes.specialty == specialty
    assert [case.id for case in read.cases] == [f"{name}-test-0", f"{name}-test-2"]
    (where,) = read_benchmark(f"{name}:{folder}", store, subset="open").cases
    assert (where.answer, where.options) == ("in the left lobe", [])
    assert [{case.groups["answer_type"]} for case in (yes, no, where)] == [{"closed"}, {"closed"}, {"open"}]
    assert len(read_benchmark(f"{name}:{folder}", store, subset="all").cases) == read.rows == 3


def test_a_part_of_a_split_says_so(tmp_path, store):
    read = read_benchmark(f"vqa_rad:{vqa(tmp_path, 'test', [(1, 'Is it?', 'yes'), (1, 'What?', 'it')])}", store)
    assert str(read) == "vqa_rad test: 1 cases of 2 rows (451 published) with 1 closed questions (251 published)"


def test_the_whole_split_says_so(tmp_path, store, monkeypatch):
    small = dataclasses.replace(BENCHMARKS["slake"], splits={"test": 3, "train": 1}, closed=2)
    monkeypatch.setitem(BENCHMARKS, "slake", small)
    rows = [("Is it?", "Yes", {}), ("What colour?", "Grey", {}), ("Where?", "Left", {"answer_type": "OPEN"})]
    read = read_benchmark(slake(tmp_path, rows), store)
    assert (read.closed, read.rows) == (2, 3)  # also the one that is left out
    assert str(read) == (
        "slake test: 1 cases of 3 rows (as published) with 2 closed questions (as published)"
        "; 1 left out: no second option for its kind of question"
    )
    other = read_benchmark(slake(tmp_path, rows[:1], "train"), store, "train")
    assert "of 1 rows (as published) with 1 closed questions (no published count)" in str(other)


SLAKE = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "CLOSED",
    "base_type": "vqa",
    "content_type": "Size",
    "triple": ["vhead", "_", "_"],
}


def slake(folder: Path, rows: list[tuple[str, str, dict]], split: str = "test") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    whole = [
        {**SLAKE, "qid": number, "question": question, "answer": answer, **more}
        for number, (question, answer, more) in enumerate(rows)
    ]
    (folder / f"{split}.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    zipped(folder / "imgs.zip", {"imgs/xmlab1/source.jpg": picture(1)})
    return f"slake:{folder}"


def test_slake(tmp_path, store):
    given = [
        ("Is it normal?", "Yes", {"content_type": "Abnormality", "modality": "X-Ray"}),
        ("Which is bigger in this image, liver or spleen?", "Liver", {}),
        ("Is this a T1 weighted or T2 weighted MRI image?", "T1", {"content_type": "Modality"}),
        ("Which type of modality is shown, MRI, CT or X-Ray?", "MRI", {"content_type": "Modality"}),
        ("它正常吗?", "是", {"q_lang": "zh"}),
        ("Where is the liver?", "Right", {"answer_type": "OPEN"}),
        ("What colour is it?", "Grey", {"content_type": "Color"}),
    ]
    read = read_benchmark(slake(tmp_path, given), store)
    assert read.rows == 6  # the English ones
    assert read.left_out == {
        "the question names the answer, but no options that can be read": 1,  # no other answer is T2
        "no second option for its kind of question": 1,
    }
    normal, bigger, modality = read.cases
    assert (normal.answer, normal.options) == ("yes", ["yes", "no"])
    assert normal.groups == {
        "benchmark": "slake",
        "answer_type": "closed",
        "modality": "X-Ray",
        "organ": "Abdomen",
        "question_type": "Abnormality",
    }
    assert (bigger.answer, bigger.options) == ("liver", ["liver", "spleen"])  # not by its capital letter
    assert modality.options == ["MRI", "CT", "X-Ray"]
    assert {case.specialty for case in read.cases} == {"Radiologist"}
    assert all(Path(case.images[0]).read_bytes() == picture(1) for case in read.cases)
    (where,) = read_benchmark(slake(tmp_path, given), store, subset="open").cases
    assert (where.id, where.answer, where.options) == ("slake-5", "Right", [])
    assert where.groups["answer_type"] == "open"


def test_slake_options_that_are_named_without_a_comma(tmp_path, store):
    question = "Is this a T1 weighted or T2 weighted MRI image?"
    kinds = [(question, "T1"), (question, "t2"), ("Which type is it, MRI, CT or X-Ray?", "MRI"), ("What is it?", "PET")]
    rows = [(asked, answer, {"content_type": "Modality"}) for asked, answer in kinds]
    first, second, _, drawn = read_benchmark(slake(tmp_path, rows), store).cases
    assert first.options == second.options == ["T1", "T2"]  # and neither CT nor MRI, which it also is
    assert (first.answer, second.answer) == ("T1", "T2")
    assert drawn.answer == "PET"
    assert set(drawn.options) <= {"PET", "T1", "t2", "MRI"}


def test_slake_unpacked_already(tmp_path, store):
    name = slake(tmp_path, [("Is it normal?", "Yes", {})])
    with zipfile.ZipFile(tmp_path / "imgs.zip") as archive:
        archive.extractall(tmp_path)
    (tmp_path / "imgs.zip").unlink()
    (case,) = read_benchmark(name, store).cases
    assert case.images == [tmp_path / "imgs" / "xmlab1" / "source.jpg"]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Writes `imgs.zip` of SLAKE with so many pictures of a shade, and says what reading gives for each."""
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", str(tmp_path / "extracted"))
    copy = tmp_path / "copy"

    def write(shade: int, count: int) -> Callable[[], list[bytes]]:
        names = [f"{number}.jpg" for number in range(count)]
        name = slake(copy, [("Is it normal?", "Yes", {"img_name": image}) for image in names])
        zipped(copy / "imgs.zip", {f"imgs/{image}": picture(shade) for image in names})
        store = ImageStore(tmp_path / "store")
        return lambda: [Path(case.images[0]).read_bytes() for case in read_benchmark(name, store).cases]

    return write


def test_an_archive_is_whole_though_its_unpacking_was_killed(archive, tmp_path, monkeypatch):
    read = archive(1, 3)
    with monkeypatch.context() as killed:
        killed.setattr(zipfile.ZipFile, "extractall", cut_short)
        with pytest.raises(KeyboardInterrupt):
            read()
    assert read() == [picture(1)] * 3
    assert not list((tmp_path / "extracted").glob("*.half"))


def cut_short(packed: zipfile.ZipFile, path: Path) -> None:
    packed.extract(packed.namelist()[0], path)
    raise KeyboardInterrupt


def test_an_archive_that_was_replaced_is_unpacked_anew(archive):
    assert archive(1, 2)() == [picture(1)] * 2
    assert archive(2, 2)() == [picture(2)] * 2


def test_shards_on_one_machine_unpack_an_archive_once(archive, monkeypatch):
    read, whole, unpacked = archive(1, 3), zipfile.ZipFile.extractall, []

    def slowly(packed: zipfile.ZipFile, path: Path) -> None:
        unpacked.append(path)
        packed.extract(packed.namelist()[0], path)
        time.sleep(0.3)  # the others come in now
        whole(packed, path)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", slowly)
    with ThreadPoolExecutor(4) as shards:
        assert list(shards.map(lambda _: read(), range(4))) == [[picture(1)] * 3] * 4
    assert len(unpacked) == 1


def test_an_archive_that_is_broken(archive, tmp_path):
    read = archive(1, 1)
    (tmp_path / "copy" / "imgs.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cases: .*imgs\.zip' cannot be unpacked"):
        read()


def test_omnimedvqa(tmp_path, store):
    def row(number, answer, modality, **options):
        return {
            "dataset": "Chest CT Scan",
            "question_id": f"chest_{number}",
            "question_type": "Disease Diagnosis",
            "question": "What is it?",
            "gt_answer": answer,
            "image_path": "Images/Chest CT Scan/a.png",
            **options,
            **modality,
        }

    four = {"option_A": "cyst", "option_B": "nodule", "option_C": "normal", "option_D": "mass"}
    ct = {"modality_type": "CT(Computed Tomography)"}
    rows = [
        row(1, "normal", ct, **four),
        row(2, "No", {"modality": "Microscopy Images"}, option_A="Yes", option_B="No"),
        row(3, "fracture", ct, **four),
        row(4, "cyst", ct, option_A="cyst", option_B="cyst"),
    ]
    path = "OmniMedVQA/QA_information/Open-access/Chest CT Scan.json"
    zipped(
        tmp_path / "OmniMedVQA.zip",
        {path: json.dumps(rows), "OmniMedVQA/Images/Chest CT Scan/a.png": picture(3)},
    )
    read = read_benchmark(f"omnimedvqa:{tmp_path}", store)
    first, second = read.cases
    assert (first.answer, first.options) == ("normal", ["cyst", "nodule", "normal", "mass"])
    assert (first.groups["modality"], first.groups["answer_type"]) == ("CT(Computed Tomography)", "closed")
    assert (first.specialty, second.specialty) == ("Radiologist", "Pathologist")
    assert second.options == ["Yes", "No"]
    assert Path(first.images[0]).read_bytes() == picture(3)
    assert read.left_out == {
        "the answer is none of the options": 1,
        "options that repeat, or an empty question": 1,
    }
    assert read.closed == read.rows == 4


def test_mmmu(tmp_path, store):
    def row(number, options, answer, kind="multiple-choice", images=(1,)):
        shown = {f"image_{n}": {"bytes": picture(n), "path": None} if n in images else None for n in range(1, 8)}
        said = {"id": f"validation_Pharmacy_{number}", "question": "See <image 1>?", "explanation": "", **shown}
        told = {"img_type": "['Plots']", "topic_difficulty": "Easy", "subfield": "Pharmacology"}
        return {**said, **told, "options": str(options), "answer": answer, "question_type": kind}

    rows = {
        "Basic_Medical_Science": [row(7, ["a", "b"], "C")],
        "Clinical_Medicine": [row(8, ["a", "b"], "AB")],
        "Diagnostics_and_Laboratory_Medicine": [row(9, ["a", "b"], "")],
        "Pharmacy": [
            row(1, ["it's", 'a "dose"', "none", "all", "<image 2>"], "E", images=(1, 2)),
            row(2, [], "12.5", kind="open"),
        ],
        "Public_Health": [row(3, ["a", "b"], "?")],
    }
    for subject, cells in rows.items():
        path = tmp_path / subject / "validation-00000-of-00001.parquet"
        parquet(path, cells, MMMU)
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)  # as other writers leave it
    read = read_benchmark(f"mmmu_medical:{tmp_path}", store)
    first, withheld = read.cases
    assert (first.answer, first.options[:2]) == ("<image 2>", ["it's", 'a "dose"'])
    assert len(first.images) == 2
    told = {"subject": "Pharmacy", "subfield": "Pharmacology", "question_type": "multiple-choice"}
    assert first.groups == {"benchmark": "mmmu_medical", "answer_type": "closed", **told}
    assert (read.rows, read.closed) == (6, 5)
    assert withheld.answer is None
    assert read.left_out == {"the answer is none of the options": 3}
    (dose,) = read_benchmark(f"mmmu_medical:{tmp_path}", store, subset="open").cases
    assert (dose.answer, dose.options, dose.groups["answer_type"]) == ("12.5", [], "open")


def test_medxpertqa(tmp_path, store):
    options = {"A": "Graves", "B": "goitre", "C": "nodule", "D": "cyst", "E": "normal"}
    choices = " ".join(f"({letter}) {text}" for letter, text in options.items())
    row = {
        "id": "MM-26",
        "question": f"A woman, 30 years. What is it?\nAnswer Choices: {choices}",
        "options": dict(reversed(options.items())),
        "label": "B",
        "images": ["MM-26-a.jpeg", "MM-26-b.jpeg"],
        "medical_task": "Diagnosis",
        "body_system": "Endocrine",
        "question_type": "Reasoning",
    }
    (tmp_path / "MM").mkdir()
    (tmp_path / "MM" / "test.jsonl").write_text(json.dumps(row) + "\n")
    zipped(tmp_path / "images.zip", {f"images/MM-26-{name}.jpeg": picture(2) for name in "ab"})
    (case,) = read_benchmark(f"medxpertqa:{tmp_path}", store).cases
    assert case.question == "A woman, 30 years. What is it?"
    assert (case.answer, case.options) == ("goitre", list(options.values()))
    assert [Path(image).name for image in case.images] == row["images"]
    told = {"medical_task": "Diagnosis", "body_system": "Endocrine", "question_type": "Reasoning"}
    assert case.groups == {"benchmark": "medxpertqa", "answer_type": "closed", **told}


def lines(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"vqa_rad:{path}"


ROW = {"question": "Is it?", "answer": "no", "options": ["yes", "no"], "modality": "CT"}


def test_jsonl(tmp_path, store):
    name = lines(tmp_path / "cases.jsonl", {**ROW, "split": "test"}, {**ROW, "options": None, "split": "train"})
    (case,) = read_benchmark(name, store).cases
    assert (case.id, case.specialty) == ("cases-1", "Radiologist")
    assert case.groups == {"benchmark": "vqa_rad", "answer_type": "closed", "modality": "CT"}
    (case,) = read_benchmark(name, store, "train", "open").cases
    assert (case.id, case.groups["answer_type"]) == ("cases-2", "open")


def test_jsonl_whose_rows_name_no_split(tmp_path, store):
    path = tmp_path / "cases.jsonl"
    name = lines(path, ROW, {**ROW, "split": None})
    assert [case.id for case in read_benchmark(name, store).cases] == ["cases-1", "cases-2"]
    assert len(read_benchmark(name, store, "train").cases) == 2
    with pytest.raises(ValueError, match="split: 'test' is not in"):
        read_benchmark(lines(path, ROW, {**ROW, "split": "train"}), store)
    assert [case.id for case in read_benchmark(name, store, "train").cases] == ["cases-2"]


def test_jsonl_that_says_which_questions_are_closed(tmp_path, store):
    """As the data set has it: SLAKE in capitals, and with options of its own for open ones."""
    closed, opened = ({**ROW, "answer_type": kind} for kind in ("CLOSED", "OPEN"))
    name = lines(tmp_path / "cases.jsonl", closed, {**closed, "options": None}, opened)
    read = read_benchmark(name, store)
    assert [case.groups["answer_type"] for case in read.cases] == ["closed", "open"]
    assert (read.closed, read.left_out) == (2, {"closed, but without options": 1})


REFUSED = {
    "unknown benchmark": ("vqarad", {}, ["'vqarad'", "vqa_rad, slake, path_vqa"]),
    "unknown subset": ("slake", {"subset": "yes/no"}, ["subset", "'yes/no'", "closed, open, all"]),
    "unknown split": ("slake", {"split": "dev"}, ["split", "'dev'", "test, train, validation"]),
    "no folder": ("slake:/nowhere", {}, ["'/nowhere'", "BoKelvin/SLAKE"]),
    "not in the cache, and no network": ("vqa_rad", {}, ["vqa_rad needs", "data/test-*.parquet", "vqa_rad:FOLDER"]),
    "no file in the cache, and no network": ("slake", {}, ["slake needs test.json", "BoKelvin/SLAKE", "slake:FOLDER"]),
    "an empty folder": ("vqa_rad:{empty}", {}, ["data/test-*.parquet", "flaviagiammarino/vqa-rad"]),
    "no JSON": ("slake:{empty}", {}, ["test.json", "BoKelvin/SLAKE"]),
    "no archive": ("omnimedvqa:{empty}", {}, ["OmniMedVQA.zip"]),
}


@pytest.mark.parametrize(("name", "more", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(name, more, said, tmp_path, store, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError) as error:
        read_benchmark(name.format(empty=tmp_path), store, **more)
    assert all(part in str(error.value) for part in said)


def test_what_is_no_json(tmp_path, store):
    (tmp_path / "test.json").write_text("[{")
    with pytest.raises(ValueError, match=r"test\.json .*not JSON"):
        read_benchmark(f"slake:{tmp_path}", store)


def test_cases_that_share_an_id(tmp_path, store):
    name = slake(tmp_path, [("Is it?", "Yes", {"qid": 7}), ("Was it?", "No", {"qid": 7})])
    with pytest.raises(ValueError, match="'slake-7' twice"):
        read_benchmark(name, store)


answers = st.lists(st.text("abcde ", min_size=1).map(str.strip).filter(bool), max_size=8)


@given(answer=st.sampled_from(["lung", "Liver"]), vocabulary=answers, seed=st.text(max_size=3), order=st.randoms())
def test_drawn_options_hold_the_right_one_once_whatever_the_order(answer, vocabulary, seed, order):
    options = drawn(answer, [*vocabulary, answer], seed)
    shuffled = [*vocabulary, answer]
    order.shuffle(shuffled)
    assert options == drawn(answer, shuffled, seed)
    if options is None:
        assert not vocabulary
    else:
        assert options.count(answer) == 1
        assert 2 <= len(options) <= 4
        assert not any(same_text(a, b) for i, a in enumerate(options) for b in options[:i])


NAMED = {
    "Which is the biggest in this image,lung,liver or heart?": ["lung", "liver", "heart"],
    "Which is it, a cyst, or the nodule?": ["cyst", "nodule"],
    "Which is it, a Cyst or a nodule?": ["Cyst", "nodule"],
    "Which plane is it, transverse plane or coronal plane?": ["transverse plane", "coronal plane"],
}


@pytest.mark.parametrize(("question", "options"), NAMED.items())
def test_what_a_question_names_is_spelled_as_there_whichever_is_right(question, options):
    for right in options:
        for answer in (right, right.lower(), right.title(), f" {right.upper()}."):  # however it is annotated
            assert named_in(question, answer) == options


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which is it, a cyst or a nodule?", "mass"),
        ("Is it a cyst or a nodule?", "cyst"),  # no comma tells where the answers begin
        ("Is it a cyst?", "cyst"),
        ("Which is it, left or left?", "left"),
        ("In this image, which is bigger, liver or spleen?", "Liver"),  # "which is bigger" is no answer
        ("In the scan, does it show, liver or spleen?", "spleen"),
        ("Which is it, liver or spleen in this image?", "Liver"),
        ("Seen from the left, the largest of all the organs, liver or spleen?", "Liver"),  # six words
    ],
)
def test_where_a_question_lists_no_answers(question, answer):
    assert named_in(question, answer) is None


ORGANS = ["Lung", "Right Lung", "liver", "Heart"]


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("Is it the lung or the Liver that is bigger?", ["lung", "Liver"]),
        ("In this image, which is bigger, right lung or liver?", ["right lung", "liver"]),  # the longer name
        ("Is it the liver or the plunge?", None),  # whole words only
        ("Is it lung, heart or liver?", None),  # more than two
        ("Is it the heart or a mass near the liver?", None),
        ("Is the lung bigger?", None),
    ],
)
def test_two_answers_of_a_vocabulary_on_either_side_of_or(question, named):
    for answer in ORGANS:
        asked = named if named and any(same_text(answer, text) for text in named) else None
        assert either_or(question, answer, ORGANS) == asked


def test_what_a_question_names_is_never_drawn():
    options = built("What is above the liver?", "Heart", ORGANS, "1")
    assert sorted(options) == ["Heart", "Lung", "Right Lung"]
    said = built("What is bigger than the liver, if the heart is not?", "Heart", ORGANS, "1")
    assert said == "the question names the answer, but no options that can be read"
    assert built("What lies above the liver?", "Heart", ["Heart", "liver"], "1") == (
        "no second option for its kind of question"
    )


def test_the_spelling_of_what_is_drawn_does_not_tell_the_right_one():
    vocabulary = ["Lung", "lung", "liver", "Liver", "heart"]
    first, *others = [drawn(answer, vocabulary, "1") for answer in ("lung", "Lung", "LUNG")]
    assert sorted(first) == ["Liver", "Lung", "heart"]
    assert others == [first, first]


def test_real_options_are_spelled_as_in_the_question():
    path = SHARED / "slake" / "cases.jsonl"
    if not path.is_file():
        pytest.skip(f"NOT TESTED on real questions: {path} is not there")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    closed = [row for row in rows if row["answer_type"] == "CLOSED" and row["answer_raw"].lower() not in YES_NO]
    kinds = {row["question_type"] for row in closed}
    known = {kind: [row["answer_raw"] for row in closed if row["question_type"] == kind] for kind in kinds}
    read = [built(row["question"], row["answer_raw"], known[row["question_type"]], row["id"]) for row in closed]
    # the data has them parsed from the same questions, by other means and in other letters
    assert [[text.lower() for text in options] for options in read] == [
        [text.lower() for text in row["options"]] for row in closed
    ]
    assert all(text in row["question"] for row, options in zip(closed, read, strict=True) for text in options)


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        # by its answer_type, of which two have no options; published are those that are answered by yes or no
        (
            "vqa_rad",
            "test",
            "270 cases of 451 rows (as published) with 272 closed questions (251 published)"
            "; 2 left out: closed, but without options",
        ),
        ("slake", "train", "335 cases of 644 rows (4919 published) with 274 closed questions (no published count)"),
    ],
)
def test_real_ones(name, split, said, store):
    path = SHARED / name / "cases.jsonl"
    if not path.is_file():
        pytest.skip(f"NOT TESTED on real questions: {path} is not there")
    read = read_benchmark(f"{name}:{path}", store, split)
    assert str(read) == f"{name} {split}: {said}"
    assert {case.specialty for case in read.cases} >= {"Radiologist"}


def test_the_closed_questions_of_vqa_rad_are_as_many_as_published(tmp_path, store):
    """Laid out as on the hub, which has the answers only: what is closed is counted by them."""
    path = SHARED / "vqa_rad" / "cases.jsonl"
    if not path.is_file():
        pytest.skip(f"NOT TESTED on real questions: {path} is not there")
    real = [row for row in map(json.loads, path.read_text().splitlines()) if row["split"] == "test"]
    folder = vqa(tmp_path, "test", [(1, row["question"], row["answer_raw"]) for row in real])
    read = read_benchmark(f"vqa_rad:{folder}", store)
    said = "vqa_rad test: 251 cases of 451 rows (as published) with 251 closed questions (as published)"
    assert str(read) == said


def test_every_benchmark_is_described():
    for benchmark in BENCHMARKS.values():
        assert benchmark.closed <= (next(iter(benchmark.splits.values())) or 0)
