"""How the baselines' models are read where they state no answer: analyses, fields of medicine, teams, remarks.

Invariant: as with answers, nothing is guessed. What a list does not plainly name is filled up with `GENERALIST`, and a
line that addresses nobody is not said. Nothing here fails on a text, however malformed.
"""

import re

from mmedagent_graph.answers import read_name, read_statement, same_text

GENERALIST = "General medicine"
"""The field of an expert for whom none could be read; the original MedAgents takes the same."""
YES_NO = ("yes", "no")

_LIST_MARK = re.compile(r"^[ \t]*(?:[-*\u2022]|[0-9]{1,2}[.)])", re.MULTILINE)
_SEPARATOR = re.compile(r"[,;|\n]")
_FIELD = re.compile(r"[^\W\d_][\w /&()'\u2019-]{1,59}")
_WORDS = 5  # more of them are a sentence
_PIECES = 100  # a longer list is none
_ADDRESS = re.compile(r"^[ \t*]*To[ \t]+(?:doctor[ \t]+)?([0-9]{1,3})[ \t]*:", re.IGNORECASE | re.MULTILINE)
_TEAM = re.compile(r"^[ \t*]*(?:Team[ \t]+)?([0-9])[ \t]*:(.*)$", re.IGNORECASE | re.MULTILINE)


def read_prose(text: str) -> str:
    """An analysis or a report: what was written, less the reasoning before it, where that can be told apart."""
    return (read_statement(text) or text).strip()


def read_consent(text: str) -> bool | None:
    """Yes or no; None where neither is stated, which is neither."""
    index = read_name(text, YES_NO)
    return None if index is None else YES_NO[index] == "yes"


def read_fields(text: str, least: int, most: int) -> list[str]:
    """The fields of medicine in a list, each once, the first `most`; filled up to `least` with `GENERALIST`.

    They may stand on lines, with or without list marks, or between commas, semicolons and bars. A field is of at most
    five words and 60 characters, without colons and full stops: anything else is passed over, as is what comes after
    100 of them.
    """
    listed = _LIST_MARK.sub("", read_statement(text) or "")
    pieces = _SEPARATOR.split(listed, maxsplit=_PIECES)[:_PIECES]
    fields: list[str] = []
    for piece in pieces:
        if len(fields) == most:
            break
        field = " ".join(piece.split()).strip("*_`. ")
        named = _FIELD.fullmatch(field) and len(field.split()) <= _WORDS
        if named and not any(same_text(field, other) for other in fields):
            fields.append(field)
    return fields + [GENERALIST] * (least - len(fields))


def read_teams(text: str, teams: int, members: int) -> list[list[str]]:
    """The fields of each team's members, from lines `1: field; field; field`; as many as there must be.

    The first line of a team counts. A team without one, or with too few fields, is filled up with `GENERALIST`.
    """
    named: dict[int, str] = {}
    for line in _TEAM.finditer(read_statement(text) or ""):
        named.setdefault(int(line[1]), line[2])
    return [read_fields(named.get(team, ""), members, members) for team in range(1, teams + 1)]


def read_remarks(text: str, doctor: int, doctors: int) -> list[tuple[int, str]]:
    """What a doctor says to which other: from each `To 2:` at the beginning of a line to the next.

    What is addressed to nobody who is there, or to the speaker, is not said; nor is what is empty.
    """
    said = read_statement(text) or ""
    starts = list(_ADDRESS.finditer(said))
    ends = [*(start.start() for start in starts[1:]), len(said)]
    remarks = [(int(start[1]), said[start.end() : end].strip("* \n")) for start, end in zip(starts, ends, strict=False)]
    return [(to, words) for to, words in remarks if words and to != doctor and 1 <= to <= doctors]
