"""The tables, and what other programs get of them."""

import csv
import dataclasses
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import figure, result, told, write_evaluation

from rl.report.exports import LATEX, csv_of, escaped, latex_of
from rl.report.numbers import Cell, p_value, percent, plain, rounded
from rl.report.runs import read_runs, studies_of
from rl.report.tables import (
    accuracy_table,
    attending_table,
    columns_of,
    cost_table,
    detail_notes,
    group_tables,
    measured,
)
from rl.statistics import NOTHING, Figure


@pytest.fixture
def studies(tmp_path):
    """Studies of evaluations, each told by its results and, if it is not the first, its seed."""

    def make(*found, **fields):
        folders = [
            write_evaluation(tmp_path / str(place), results, seed, **fields)
            for place, (results, seed) in enumerate(
                (*one, 0)[:2] if isinstance(one, tuple) else (one, 0) for one in found
            )
        ]
        return studies_of(read_runs(folders)[0])

    return make


# Numbers


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(None, 1, ""), (0.04, 1, "0.0"), (-0.04, 1, "0.0"), (-0.06, 1, "-0.1"), (12.35, 0, "12"), (1234.5, 1, "1234.5")],
)
def test_rounded(value, digits, text):
    assert rounded(value, digits) == text


def test_cells():
    assert percent(Figure(0.5, 0.4321, 0.61, 9)) == Cell("50.0", "43.2", "61.0")
    assert percent(NOTHING) == Cell()
    assert plain(Figure(5.0, None, None, 1), 2) == Cell("5.00")
    assert (Cell("5", "4", "6").text, Cell("5").text, Cell().text) == ("5 [4, 6]", "5", "-")
    assert [p_value(p).value for p in (None, 0.0004, 0.001, 0.5)] == ["", "<0.001", "0.001", "0.500"]


# The table in the papers' layout


def test_columns_are_in_the_papers_order(studies):
    found = studies(
        {name: {"a": result()} for name in ("clinic", "path_vqa", "vqa_rad")},
        sources={"path_vqa": "path_vqa:/data", "vqa_rad": "vqa_rad"},
    )
    assert columns_of(found) == {"vqa_rad": "VQA-RAD", "path_vqa": "PathVQA", "clinic": "clinic"}


def test_a_row_for_each_system_with_its_interval(studies):
    table = accuracy_table(studies({"clinic": {"a": result(0.5), "b": result(0.55)}}))
    assert [(row.label, row.mark, *row.cells) for row in table.rows] == [
        ("a", "", Cell("50.0", "40.0", "60.0")),
        ("b", "", Cell("55.0", "40.0", "60.0")),
    ]
    assert [(column.title, column.about) for column in table.columns] == [("clinic", "10 cases")]
    assert len(table.notes) == 1
    assert "bootstrap over images" in table.notes[0]


FRESH = "Of clinic each seed has cases of its own, so that it is by Student's t over the seeds."
SAME = "All seeds are of the same cases, so that it is of other runs, by Student's t over the seeds, and of other cases"


def test_over_seeds_the_note_says_so(studies):
    found = studies(({"clinic": {"a": result(0.4)}}, 7), ({"clinic": {"a": result(0.6)}}, 3))
    table = accuracy_table(found)
    assert table.rows[0].cells[0] == Cell("50.0", "0.0", "100.0"), "shares end at 0 and 1"
    assert table.notes == [f"Each figure is the mean over all seeds (3, 7) with its 95% interval. {FRESH}"]


def test_over_seeds_on_the_same_cases_the_note_says_so(studies):
    both = {"clinic": {"a": result(0.5)}, "own": {"a": result(0.5)}}
    (note,) = accuracy_table(studies((both, 0), (both, 1))).notes
    assert SAME in note
    assert note.endswith(FRESH)
    own = {"own": {"a": result(0.5)}}
    table = accuracy_table(studies((own, 0), (own, 1)))
    assert table.rows[0].cells[0] == Cell("50.0", "40.0", "60.0"), "not of no width, where nothing differs"
    assert SAME in table.notes[0]
    assert FRESH not in table.notes[0]


def test_where_some_have_one_seed_both_notes_are_there(studies):
    found = studies({"clinic": {"a": result()}}, ({"clinic": {"a": result()}}, 1), {"clinic": {"b": result()}})
    over, once = accuracy_table(found).notes
    assert "seeds (0, 1)" in over
    assert once.startswith("Where there is one seed: intervals are at 95%, by bootstrap")


def test_a_figure_that_one_seed_alone_knows_is_not_said_to_be_over_seeds(studies):
    found = studies({"own": {"a": result(0.5)}}, ({"own": {"a": result(accuracy=figure(None, n=0))}}, 1))
    table = accuracy_table(found)
    assert table.rows[0].cells[0] == Cell("50.0", "40.0", "60.0")
    once, missing = table.notes
    assert once.startswith("Intervals are at 95%, by bootstrap over images")
    assert missing.startswith("a on own: of its cases 10 gave no result")


def test_papers_are_quoted_under_their_benchmarks_only(studies):
    table = accuracy_table(
        studies({"clinic": {"a": result()}, "path_vqa": {"a": result()}}, sources={"path_vqa": "path_vqa"})
    )
    quoted = {row.label: [cell.value for cell in row.cells] for row in table.rows if row.mark}
    assert quoted == {  # the paper's table 1, its column PathVQA
        "GPT-4o": ["69.4", ""],
        "Qwen2.5-VL-7B": ["60.5", ""],
        "MedVLThinker-7B": ["65.2", ""],
        "MDAgents": ["65.4", ""],
        "MMedAgent-RL (7B)": ["72.3", ""],
        "MMedAgent-RL + test-time scaling": ["74.3", ""],
    }
    assert not any(cell.low for row in table.rows if row.mark for cell in row.cells)
    assert re.match(r"† Quoted from MMedAgent-RL \(arXiv 2506.00555\), not measured here", table.notes[-1])


def test_both_papers_have_their_notes(studies):
    table = accuracy_table(studies({"omnimedvqa": {"a": result()}}, sources={"omnimedvqa": "omnimedvqa"}))
    marks = {row.label: (row.mark, row.cells[0].value) for row in table.rows}
    assert marks["MMedExpert-R1 (7B)"] == ("‡", "83.0")
    assert marks["MMedAgent-RL w/o triage"] == ("†", "66.2")
    assert [note[0] for note in table.notes[1:]] == ["†", "‡"]


def test_a_file_that_is_named_as_a_benchmark_is_none(studies):
    table = accuracy_table(studies({"slake": {"a": result()}}, sources={"slake": "mine/slake.jsonl"}))
    assert [column.title for column in table.columns] == ["slake"]
    assert [row.label for row in table.rows] == ["a"]


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"split": "train"}, "split train"),
        ({"free_text": "grade"}, "open questions, too"),
        ({"limit": 50, "split": "validation"}, "split validation, the first 50 cases"),
    ],
)
def test_no_paper_is_quoted_for_other_cases_than_its_own(studies, chosen, why):
    table = accuracy_table(studies({"slake": {"a": result()}}, sources={"slake": "slake"}, chosen=chosen))
    assert [row.label for row in table.rows] == ["a"]
    assert table.notes[1:] == [
        f"Of SLAKE no paper is quoted: here it is {why}, and the papers' figures are of the closed questions of the "
        "whole test split."
    ]


def test_papers_are_quoted_where_their_split_is_named(studies):
    table = accuracy_table(studies({"slake": {"a": result()}}, sources={"slake": "slake"}, chosen={"split": "test"}))
    assert "GPT-4o" in [row.label for row in table.rows]


def test_systems_of_the_same_name_are_told_apart(studies):
    found = studies({"clinic": {"a": result()}}, {"clinic": {"a": result(), "b": result()}})
    assert [one.label for one in measured(found)] == ["a (0)", "a (1)", "b"]


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    folders = [
        write_evaluation(tmp_path / place / "eval", {"clinic": {name: result() for name in systems}})
        for place, systems in (("x", "a"), ("y", "ab"))
    ]
    found = measured(studies_of(read_runs(folders)[0]))
    assert [one.label for one in found] == [f"a ({folders[0]})", f"a ({folders[1]})", "b"]


@pytest.mark.parametrize(
    ("counts", "n", "said"),
    [
        ({"failed": 2, "left": 1}, 7, "2 failed, and 1 gave no result, such as those of a shard that is not there"),
        ({"failed": 2}, 8, "2 failed"),
        ({"done": 4, "left": 0}, 4, "6 gave no result, such as those of a shard that is not there"),
        ({"done": 0, "left": 10}, 0, "10 gave no result, such as those of a shard that is not there"),
    ],
)
def test_figures_of_fewer_cases_say_so(studies, counts, n, said):
    few = result(accuracy=figure(0.5 if n else None, 0.4, 0.6, n), **counts)
    table = accuracy_table(studies({"clinic": {"a": result(), "b": few}}))
    assert table.columns[0].about == f"{n} to 10 cases"
    assert table.notes[-1] == f"b on clinic: of its cases {said}; its figures are of the rest."


def test_a_smaller_limit_than_before_leaves_nothing_out(studies):
    """Results of an earlier run, with more cases, are all there."""
    notes = accuracy_table(studies({"clinic": {"a": result(accuracy=figure(0.5, 0.4, 0.6, 30))}})).notes
    assert len(notes) == 1


def test_models_of_one_name_have_rows_of_their_own(tmp_path):
    folders = [
        write_evaluation(tmp_path / name, {"c": {"mmedagent": result(value)}}, systems={"mmedagent": {"system": name}})
        for name, value in (("before", 0.25), ("after", 0.75))
    ]
    table = accuracy_table(studies_of(read_runs(folders)[0]))
    rows = {row.label: row.cells[0].value for row in table.rows}
    assert rows == {"mmedagent (before)": "25.0", "mmedagent (after)": "75.0"}
    assert len(table.notes) == 1, "nothing is pooled"


def test_a_row_of_several_trainings_says_so(tmp_path):
    def spec(seed):
        return {
            "system": "mmedagent",
            "attending": f"run-{seed}",
            "specialists": ["x", "y"],
            **({"votes": 5} if seed else {}),
        }

    folders = [
        write_evaluation(tmp_path / str(seed), {"c": {"a": result(), "b": result()}}, seed,
                         systems={"a": spec(seed), "b": {"system": "single", "model": "m"}})
        for seed in (0, 1)
    ]  # fmt: skip
    notes = accuracy_table(studies_of(read_runs(folders)[0])).notes
    assert notes[1:] == [
        "a is another with each seed, such as one training for each, and its row is the mean of these: "
        "attending is run-0 (seed 0), run-1 (seed 1); votes is not given (seed 0), 5 (seed 1)."
    ]


# The others


def test_attending_and_cost(studies):
    found = result(
        attending={**result()["attending"], "right_to_wrong": figure(0.125, 0.0, 0.25)},
        cost={"calls": 5.0, "input_tokens": 70.25, "output_tokens": 30.0, "seconds": 1.234, "dollars": 0.00125},
        against_reference=told(-0.05, 0.0001),
    )
    systems = measured(studies({"clinic": {"a": result(), "b": found}}))
    attending = attending_table(systems, "clinic", "clinic")
    cells = dict(zip([column.title for column in attending.columns], attending.rows[1].cells, strict=True))
    assert cells["right → wrong"] == Cell("12.5", "0.0", "25.0")
    cost = cost_table(systems, "clinic", "clinic")
    assert [cell.text for cell in cost.rows[1].cells] == [
        *(
            "90.0 [80.0, 100.0]",
            "0.0 [0.0, 10.0]",
            "5.0",
            "70",
            "30",
            "0.0013",
            "1.23",
            "-5.0 [-15.0, 5.0]",
            "<0.001",
        )
    ]
    assert [cell.text for cell in cost.rows[0].cells][-2:] == ["-", "-"], "the reference"
    assert cost.title == "Triage, cost, and comparison with a: clinic"


def test_what_was_withheld_stands_beside_what_could_not_be_read(studies):
    withheld = result(abstained=figure(0.2, 0.1, 0.3))
    never = result(abstained=figure(0.0, 0.0, 0.1))
    table = cost_table(measured(studies({"clinic": {"a": never, "b": withheld}})), "clinic", "clinic")
    assert [column.title for column in table.columns][:4] == ["triage", "unparsed", "abstained", "calls"]
    assert [row.cells[2].text for row in table.rows] == ["0.0 [0.0, 10.0]", "20.0 [10.0, 30.0]"]
    for nobody in (never, result()):
        table = cost_table(measured(studies({"clinic": {"a": nobody}})), "clinic", "clinic")
        assert "abstained" not in [column.title for column in table.columns]


def test_the_best_single_specialist_has_its_number(studies):
    def best(doctor, value):
        return result(best_specialist={"doctor": doctor, **figure(value, value - 0.1, value + 0.1)})

    systems = measured(
        studies(
            {
                "clinic": {
                    "a": best("2", 0.7),
                    "b": result(best_specialist={"doctor": "1", **figure(None, n=0)}),
                    "c": result(best_specialist=None),
                }
            }
        )
    )
    table = attending_table(systems, "clinic", "clinic")
    assert [column.title for column in table.columns][-2:] == ["best single specialist", "its number"]
    assert [[cell.text for cell in row.cells[-2:]] for row in table.rows] == [
        ["70.0 [60.0, 80.0]", "2"],
        ["-", "-"],
        ["-", "-"],
    ]
    assert "on one half of the images" in table.notes[0]
    systems = measured(studies({"own": {"a": best("2", 0.7)}}, ({"own": {"a": best("1", 0.7)}}, 1)))
    assert [cell.text for cell in attending_table(systems, "own", "own").rows[0].cells[-2:]] == [
        "70.0 [60.0, 80.0]",
        "2, 1",
    ]


def test_a_triage_that_nobody_was_asked_for_is_an_empty_cell(studies):
    nobody = result(triage={"accuracy": figure(None, n=0), "confusion": {}})
    table = cost_table(measured(studies({"clinic": {"a": result(), "b": nobody}})), "clinic", "clinic")
    assert [row.cells[0].text for row in table.rows] == ["90.0 [80.0, 100.0]", "-"]


def test_who_hears_no_specialists_makes_nothing_of_them(studies):
    nobody = result(attending=dict.fromkeys(result()["attending"], figure(None, n=0)))
    systems = measured(studies({"clinic": {"a": result(), "alone": nobody}}))
    assert [row.label for row in attending_table(systems, "clinic", "clinic").rows] == ["a"]


def test_groups_have_tables_of_their_own(studies):
    def by(**sizes):
        return {group: figure(0.5, 0.4, 0.6, n) for group, n in sizes.items()}

    one = result(by={"tier": by(easy=5, hard=3), "specialty": by(A=8), "organ": by(Lung=2, Head=6)})
    many = {f"organ-{n}": n for n in range(1, 15)}
    other = result(by={"tier": by(easy=5, hard=2), "specialty": by(A=4, B=4), "organ": {}})
    tiers, specialties, organs = group_tables(measured(studies({"clinic": {"a": one, "b": other}})), "clinic", "clinic")
    assert [(column.title, column.about) for column in tiers.columns] == [
        ("easy", "5 cases"),
        ("hard", "2 to 3 cases"),
    ]
    assert specialties.title == "Accuracy by labelled specialty: clinic, in %"
    assert [row.cells[1].text for row in specialties.rows] == ["-", "50.0 [40.0, 60.0]"]
    assert [column.title for column in organs.columns] == ["Head", "Lung"], "the largest first"
    assert [row.label for row in organs.rows] == ["a"]
    (large,) = group_tables(measured(studies({"x": {"a": result(by={"organ": by(**many)})}})), "x", "x")
    assert [column.title for column in large.columns] == [f"organ-{n}" for n in range(14, 4, -1)]
    assert large.notes == ["The 10 largest of 14."]
    assert not group_tables(measured(studies({"x": {"a": result(by={"organ": by(Lung=3)})}})), "x", "x")
    heard = result(by={}, specialists=by(**{"1": 7, "2": 8}))
    (doctors,) = group_tables(measured(studies({"x": {"a": heard}})), "x", "x")
    assert doctors.title == "Accuracy of each specialist's opinion, by its number: x, in %"
    assert [(column.title, column.about) for column in doctors.columns] == [("1", "7 cases"), ("2", "8 cases")]
    assert [cell.text for cell in doctors.rows[0].cells] == ["50.0 [40.0, 60.0]"] * 2


def test_the_notes_say_which_test_it_is(studies):
    found = {"clinic": {"a": result()}}
    assert "p is by McNemar's exact test" in detail_notes(studies(found))[1]
    both = detail_notes(studies(found, (found, 1)))[1]
    assert "p is by Student's t over the seeds, where there are several, or else by McNemar's exact test" in both
    assert "believe the interval" in detail_notes(studies(found, (found, 1)))[2]


# CSV and LaTeX


def test_csv_has_what_the_table_has(studies):
    table = accuracy_table(studies({"slake": {"a": result(0.5)}}, sources={"slake": "slake"}))
    table = dataclasses.replace(table, rows=[dataclasses.replace(table.rows[0], label='a"b,c'), *table.rows[1:]])
    rows = list(csv.reader(io.StringIO(csv_of(table))))
    assert rows[0] == ["system", "quoted", "SLAKE", "SLAKE low", "SLAKE high"]
    assert rows[1] == ['a"b,c', "no", "50.0", "40.0", "60.0"]
    assert rows[2] == ["GPT-4o", "yes", "75.5", "", ""]
    assert len(rows) == 1 + len(table.rows)


def test_latex(studies):
    table = accuracy_table(studies({"slake": {"my_system": result(0.5)}}, sources={"slake": "slake"}))
    text = latex_of(table)
    assert r"my\_system & 50.0 & {\scriptsize [40.0, 60.0]} \\" in text
    assert r"\textit{GPT-4o}\textsuperscript{\dag{}} & \textit{75.5} &  \\" in text
    assert r" & \multicolumn{2}{c}{SLAKE} \\" in text
    assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 2, 1]
    assert text.count("\\begin{") == text.count("\\end{") == 2


def test_a_cell_that_is_empty_or_negative(studies):
    found = {"clinic": {"a": result(accuracy=figure(0.1, -0.05, 0.3))}, "slake": {"a": result(None)}}
    text = latex_of(accuracy_table(studies(found)))
    assert r"a & 10.0 & {\scriptsize [$-$5.0, 30.0]} & -- & \\" in text


@given(st.text())
def test_what_latex_prints_is_the_text(text):
    """No character keeps a meaning of its own: undone, one after the other, all are there again."""
    back = {shown: chr(character) for character, shown in LATEX.items() if character != ord("\n")}
    pieces = re.split("(" + "|".join(map(re.escape, sorted(back, key=len, reverse=True))) + ")", escaped(text))
    assert "".join(back.get(piece, piece) for piece in pieces) == text.replace("\n", " ")
    assert not re.search(r"[\\&%$#_{}~^<>]", "".join(piece for piece in pieces if piece not in back))
