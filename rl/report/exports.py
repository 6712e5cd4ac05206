"""A table for other programs: CSV with the ends of each interval in columns of their own, and LaTeX with booktabs."""

import csv
import io

from rl.report.numbers import Cell
from rl.report.tables import Row, Table

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "†": r"\dag{}",
        "‡": r"\ddag{}",
        "→": r"$\to$",
        "\n": " ",
    }
)


def csv_of(table: Table) -> str:
    """The table as CSV: of each column its value, and the lower and upper end of its interval."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = [name for column in table.columns for name in (column.title, f"{column.title} low", f"{column.title} high")]
    writer.writerow(["system", "quoted", *ends])
    for row in table.rows:
        writer.writerow([row.label, "yes" if row.mark else "no", *(end for cell in row.cells for end in cell)])
    return file.getvalue()


def latex_of(table: Table) -> str:
    """The table as LaTeX; its packages are named above it."""
    heads = [rf"\multicolumn{{2}}{{c}}{{{escaped(column.title)}}}" for column in table.columns]
    ours = [_line(row) for row in table.rows if not row.mark]
    quoted = [_line(row) for row in table.rows if row.mark]
    body = [*ours, *([r"\midrule", *quoted] if quoted else [])]
    notes = "".join(f"\\par {escaped(note)}\n" for note in table.notes)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r@{ }l' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["", *heads]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"{{\footnotesize{chr(10)}{notes}}}",
            r"\end{table}",
            "",
        ]
    )


def _line(row: Row) -> str:
    label = escaped(row.label)
    if row.mark:
        label = rf"\textit{{{label}}}\textsuperscript{{{escaped(row.mark)}}}"
    return " & ".join([label, *(_cell(cell, bool(row.mark)) for cell in row.cells)]) + r" \\"


def _cell(cell: Cell, quoted: bool) -> str:
    """The value, and its interval in a column of its own, so that both line up."""
    if not cell.value:
        return "-- &"
    value, interval = (text.replace("-", "$-$") for text in (escaped(cell.value), escaped(cell.interval)))
    return (rf"\textit{{{value}}}" if quoted else value) + " & " + (rf"{{\scriptsize {interval}}}" if interval else "")


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(LATEX)
