"""What a report is made of, and figures over seeds, by hand."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from reported import figure, result, told, write_evaluation, write_training

from rl.report.runs import Study, read_runs, studies_of
from rl.statistics import NOTHING


def study(*folders: Path) -> Study:
    (found,) = studies_of(read_runs(folders)[0])
    return found


@pytest.fixture
def seeds(tmp_path):
    """A study of so many seeds, whose system `b` was found so."""

    def make(*found, cases="slake"):
        folders = [
            write_evaluation(tmp_path / f"seed{seed}", {cases: {"a": result(), "b": one}}, seed)
            for seed, one in enumerate(found)
        ]
        return study(*folders)

    return make


def test_a_folder_that_is_no_run_is_named(tmp_path):
    (tmp_path / "stages").mkdir()
    with pytest.raises(ValueError, match=r"runs: '.*' is no finished run; give a folder with evaluation.json"):
        read_runs([tmp_path])


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("[]", "no JSON object"), ("{}", "lacks seed")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, words):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=rf"runs: .*evaluation\.json.*{words}"):
        read_runs([tmp_path])


def test_stages_are_in_their_order(tmp_path):
    names = ["10-hard", "2-medium", "1-easy"]
    _, (training,) = read_runs([write_training(tmp_path / "run", names)])
    assert training.stages == ["1-easy", "2-medium", "10-hard"]
    assert training.name == "run"


def test_an_evaluation_from_before_versions_were_kept(tmp_path):
    folder = write_evaluation(tmp_path, {"slake": {"a": result()}})
    said = json.loads((folder / "evaluation.json").read_text())
    del said["versions"], said["commit"]
    (folder / "evaluation.json").write_text(json.dumps(said))
    (evaluation,), _ = read_runs([folder])
    assert (evaluation.versions, evaluation.commit) == ({}, None)


def test_one_seed_keeps_its_own_interval(seeds):
    found = seeds(result(0.5)).figure("slake", "b", "accuracy")
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.4, 0.6, 10)


def test_several_seeds_are_their_mean_with_students_t(seeds):
    found = seeds(result(0.65), result(0.75), result(0.7), cases="clinic").figure("clinic", "b", "accuracy")
    half = 4.302653 * 0.05 / math.sqrt(3)  # t(0.975, 2 degrees), and a standard deviation of 0.05
    assert found.value == pytest.approx(0.7), "not the best"
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half)), "the clinic's cases are others each time"
    assert found.n == 3


def test_seeds_of_the_same_cases_have_the_interval_of_the_cases_too(seeds):
    found = seeds(result(0.65), result(0.75), result(0.7)).figure("slake", "b", "accuracy")
    half = math.hypot(4.302653 * 0.05 / math.sqrt(3), 0.1)  # each seed's own is from 0.4 to 0.6
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half))


def test_intervals_end_where_values_do(seeds):
    def found(difference):
        return result(0.5, cost={"calls": 5 + 100 * difference}, against_reference=told(difference, 0.5))

    several = seeds(found(-0.9), found(-0.1), found(0.9))
    difference = several.figure("slake", "b", "against_reference", "difference")
    assert (difference.low, difference.high) == (-1.0, 1.0)
    assert several.figure("slake", "b", "cost", "calls").low < -1
    within = seeds(found(-0.05), found(0.0)).figure("slake", "b", "against_reference", "difference")
    assert -1 < within.low < 0 < within.high < 1


def test_a_mean_without_an_interval_gets_one_over_seeds(seeds):
    spent = [result(cost={"calls": calls}) for calls in (4.0, 6.0)]
    alone = seeds(spent[0]).figure("slake", "b", "cost", "calls")
    assert (alone.value, alone.low, alone.high) == (4.0, None, None)
    both = seeds(*spent).figure("slake", "b", "cost", "calls")
    assert both.value == 5.0
    assert both.high == pytest.approx(5 + 12.706205 * math.sqrt(2) / math.sqrt(2))


def test_what_no_seed_knows_is_nothing(seeds):
    found = seeds(result(cost={"dollars": None}), result(None))
    assert found.figure("slake", "b", "cost", "dollars") == NOTHING
    assert found.figure("slake", "b", "by", "tier", "medium") == NOTHING
    assert found.figure("vqa_rad", "b", "accuracy") == NOTHING


def test_a_seed_that_knows_nothing_is_not_counted(seeds):
    found = seeds(result(0.5), result(accuracy=figure(None)), result(0.7)).figure("slake", "b", "accuracy")
    assert (found.value, found.n) == (pytest.approx(0.6), 2)


def test_p_of_one_seed_is_mcnemars(seeds):
    assert seeds(result(against_reference=told(0.1, 0.25))).p("slake", "b") == 0.25
    assert seeds(result()).p("slake", "a") is None, "the reference itself"


def test_p_over_seeds_is_students(seeds):
    found = [result(against_reference=told(difference, 0.25)) for difference in (0.1, 0.2, 0.3)]
    t = 0.2 / (0.1 / math.sqrt(3))
    assert seeds(*found).p("slake", "b") == pytest.approx(1 - t / math.sqrt(t * t + 2))  # two degrees of freedom
    assert seeds(*[found[0]] * 3).p("slake", "b") is None, "no spread, no test"


def test_a_system_without_a_result_is_not_compared(seeds):
    nothing = result(against_reference={"difference": figure(None, n=0), "only_first": 0, "only_second": 0, "p": 1.0})
    assert seeds(nothing).p("slake", "b") is None
    assert seeds(nothing, result(against_reference=told(0.1, 0.25))).p("slake", "b") == 0.25


def test_other_systems_are_another_study(tmp_path):
    one = write_evaluation(tmp_path / "one", {"slake": {"a": result(), "b": result()}})
    two = write_evaluation(tmp_path / "two", {"slake": {"a": result()}}, seed=1)
    three = write_evaluation(tmp_path / "three", {"slake": {"a": result(), "b": result()}}, seed=1)
    found = studies_of(read_runs([one, two, three])[0])
    assert [[each.folder.name for each in study.evaluations] for study in found] == [["one", "three"], ["two"]]
    assert [study.seeds for study in found] == [[0, 1], [1]]


def test_one_seed_may_lie_in_folders_of_other_cases(tmp_path):
    found = study(
        write_evaluation(tmp_path / "one", {"slake": {"a": result(0.1)}}),
        write_evaluation(tmp_path / "two", {"vqa_rad": {"a": result(0.2)}}),
    )
    assert list(found.cases) == ["slake", "vqa_rad"]
    assert [found.figure(cases, "a", "accuracy").value for cases in found.cases] == [0.1, 0.2]


def test_the_same_seed_twice_is_refused(tmp_path):
    folders = [write_evaluation(tmp_path / name, {"slake": {"a": result()}}) for name in ("one", "two")]
    with pytest.raises(ValueError, match=r"one and .*two both hold seed 0 of slake, of the same systems; give one"):
        study(*folders)


@pytest.fixture
def consultations(tmp_path):
    """What `rl.evaluate --model` leaves, whose system has the same name whoever it is; each as `MODEL SEED`."""

    def make(*named):
        folders = []
        for place, (model, seed) in enumerate(name.split() for name in named):
            systems = {"mmedagent": {"system": "mmedagent", "attending": model}}
            found = {"slake": {"mmedagent": result()}}
            folders.append(write_evaluation(tmp_path / f"{place}", found, int(seed), systems=systems))
        return studies_of(read_runs(folders)[0])

    return make


def together(studies):
    """The models and seeds of each study."""
    return [[f"{one.systems['mmedagent']['attending']} {one.seed}" for one in study.evaluations] for study in studies]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["before 0", "after 0"], [["before 0"], ["after 0"]]),
        (["before 0", "after 1", "before 1", "after 0"], [["before 0", "before 1"], ["after 0", "after 1"]]),
        (["run-2 2", "run-0 0", "run-1 1"], [["run-0 0", "run-1 1", "run-2 2"]]),
        (["run-1 1", "base 0", "run-0 0", "base 1"], [["run-0 0", "run-1 1"], ["base 0", "base 1"]]),
    ],
)
def test_other_models_of_one_seed_are_no_seeds_of_one_system(consultations, given, expected):
    assert together(consultations(*given)) == expected


@pytest.mark.parametrize("order", list(itertools.permutations(["base 0", "run-0 0", "run-1 1"])))
def test_what_could_be_a_seed_of_two_is_refused_in_any_order(consultations, order):
    with pytest.raises(ValueError, match=r"0, .*1, .*2 name their systems alike, but these differ"):
        consultations(*order)


def test_other_references_are_refused(tmp_path):
    found = {"slake": {"a": result(), "b": result()}}
    folders = [write_evaluation(tmp_path / name, found, seed, reference=name) for seed, name in enumerate("ab")]
    with pytest.raises(ValueError, match=r"compares with 'a', and .* with 'b'"):
        study(*folders)


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ("slake", "mine/slake.jsonl", r"source 'slake' and '/.*mine/slake.jsonl'"),
        ("siteA/slake.jsonl", "siteB/slake.jsonl", r"source '/.*siteA/slake.jsonl' and '/.*siteB/slake.jsonl'"),
    ],
)
@pytest.mark.parametrize("systems", ["aa", "ab"])
def test_other_cases_of_the_same_name_are_no_column(tmp_path, one, two, said, systems):
    """Neither as two seeds of one system, nor as two systems."""
    folders = [
        write_evaluation(tmp_path / str(seed), {"slake": {system: result()}}, seed, {"slake": source})
        for seed, (source, system) in enumerate(zip((one, two), systems, strict=True))
    ]
    with pytest.raises(ValueError, match=rf"slake in .*0 and slake in .*1 are different cases: {said}"):
        studies_of(read_runs(folders)[0])


@pytest.mark.parametrize(
    ("one", "two"), [("slake", "slake:/data/SLAKE"), ("x/../slake.jsonl", "slake.jsonl"), ("clinic", "clinic")]
)
def test_the_same_cases_may_be_named_in_several_ways(tmp_path, one, two):
    folders = [
        write_evaluation(tmp_path / str(seed), {"slake": {"a": result()}}, seed, {"slake": source})
        for seed, source in enumerate((one, two))
    ]
    assert study(*folders).seeds == [0, 1]


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ({}, {"split": "train"}, "split 'test' and 'train'"),
        ({"free_text": "grade"}, {}, "free_text 'grade' and 'skip'"),
        ({"limit": 50}, {}, "limit 50 and None"),
    ],
)
def test_seeds_of_other_choices_of_cases_are_refused(tmp_path, one, two, said):
    folders = [
        write_evaluation(tmp_path / str(seed), {"slake": {"a": result()}}, seed, {"slake": "slake"}, chosen)
        for seed, chosen in enumerate((one, two))
    ]
    with pytest.raises(ValueError, match=said):
        study(*folders)


def test_the_default_split_may_be_named_or_not_be_known(tmp_path):
    folders = [
        write_evaluation(tmp_path / str(seed), {"slake": {"a": result()}}, seed, {"slake": "slake"}, {"split": split})
        for seed, split in enumerate((None, "test", None))
    ]
    said = json.loads((folders[2] / "evaluation.json").read_text())
    said["cases"]["slake"] = {"source": "slake", "cases": 10, "skipped": 0}
    (folders[2] / "evaluation.json").write_text(json.dumps(said))
    assert study(*folders).seeds == [0, 1, 2]


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "../../elsewhere", "a/b", "a b", "", ".hidden", "a\n"])
def test_a_name_that_is_a_formula_or_a_path_is_refused(tmp_path, name):
    for found, fields in (
        ({"slake": {name: result()}}, {}),
        ({name: {"a": result()}}, {}),
        ({"slake": {"a": result()}}, {"reference": name}),
    ):
        folder = write_evaluation(tmp_path, found, **fields)
        with pytest.raises(ValueError, match=f"has the name {re.escape(repr(name))}; names are letters"):
            read_runs([folder])


def test_names_that_an_evaluation_gives_are_taken(tmp_path):
    names = ["mmedagent", "qwen2.5-vl_7B+lora", "7b", "_x", "画像"]
    (evaluation,), _ = read_runs([write_evaluation(tmp_path, {name: {name: result()} for name in names})])
    assert list(evaluation.systems) == names
