"""Tables, as a terminal and as Markdown show them."""

from rich.table import Table

from rl.printed import markdown, percent, show


def test_a_table_is_wide_enough_for_a_log(capsys):
    table = Table()
    for _ in range(3):
        table.add_column("x" * 30, no_wrap=True)
    table.add_row(*["y" * 40] * 3)
    show(table)
    assert "y" * 40 in capsys.readouterr().out.splitlines()[3]


def test_a_share_and_its_interval():
    assert percent({"value": 0.5, "low": 0.25, "high": 1.0}) == "50.0 [25.0, 100.0]"
    assert percent({"value": 0.5, "low": None, "high": None}, interval=False) == "50.0"
    assert percent({"value": None, "low": None, "high": None}) == "-"


def test_a_cell_stays_one_cell():
    assert markdown(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"
