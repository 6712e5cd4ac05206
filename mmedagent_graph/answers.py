"""The one strict reader of answers, shared by inference, rewards and evaluation.

Invariant: what is returned was stated. Every plain way to read the statement is tried, and an index is returned only
where all the readings that succeed name the same option. Silence, doubt and contradiction are ``None``; nothing is
matched by nearness or as a part of something longer.

All functions here take hostile text: the work grows linearly with its length, because tags are found in one pass, and
only a statement of at most ``_LIMIT`` characters (white space collapsed) is looked at any further.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import islice

__all__ = [
    "LETTERS",
    "letter",
    "read_answer",
    "read_free_text",
    "read_name",
    "read_statement",
    "same_text",
    "split_reasoning",
    "well_formed",
]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LIMIT = 2000  # a longer statement is no answer; CPython's NFKC is quadratic on long runs of combining marks
_FREE_LIMIT = 200  # without tags, a longer text is an essay and no short answer
_MAX_FORMS = 64  # deeper wrapping than this is no plain statement

# White space inside a tag is tolerated. Possessive, so that "<" and a million blanks are passed over once. ASCII, or
# IGNORECASE would let a long s (U+017F) spell "answer".
_TAG = re.compile(r"<\s*+(?P<slash>/?)\s*+(?P<name>think|answer)\s*+>", re.IGNORECASE | re.ASCII)

# What follows is matched against normalised text: NFKC, case-folded, single spaces.
_CLOSING = " .,;:!\u3002"  # U+3002 is the CJK full stop; not "?": a question states nothing
_WRAPS = (
    ("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"), ("`", "`"), ("_", "_"), ("$", "$"),
    ("\\(", "\\)"), ("\\[", "\\]"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"),
)  # fmt: skip
# Emphasis goes only as a pair around whole words: "T2*" is not "T2", "**A****B**" is not "AB".
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})([^*]+)\1(?![\w*])")
_LATEX = re.compile(r"(?<![\w}])\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\{([^{}]*)\}(?![\w\\{])")
_DASH = "-\u2010-\u2015\u2212"  # hyphen (first: elsewhere in a class it makes a range), dashes, minus sign
# "the correct answer is", "final answer:", "answer -"; a dash needs its space, so that "answer -5" is not "5".
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:(?:the|my) )?(?:(?:final|correct|right|best) )*"
    rf"(?:answer(?: choice| option)?|option|choice)(?: is\b(?: ?:)?| ?[:=]| [{_DASH}](?= )) ?"
)
_NOUN = r"(?:(?:the )?(?:option|choice|answer|letter) )?"
_LABEL = re.compile(_NOUN + r"(\([a-z]\)|\[[a-z]\]|[a-z]\)?)")
_LABEL_TEXT = re.compile(_NOUN + rf"(\([a-z]\)|\[[a-z]\]|[a-z][).:]|[a-z](?=[ ,(]))(?: ?[{_DASH}:=](?= )|,)? ?(.+)")
_TEXT_LABEL = re.compile(r"(.+?) ?[(\[](?:option |choice )?([a-z])[)\]]")


def letter(index: int) -> str:
    """Return the letter of the option at ``index``: "A" for 0 up to "Z" for 25.

    Raises:
        ValueError: ``index`` is negative or beyond 25.
    """
    if not 0 <= index < len(LETTERS):
        raise ValueError(f"index: {index} has no letter, only 0 to {len(LETTERS) - 1} do")
    return LETTERS[index]


def read_answer(text: str, options: Sequence[str]) -> int | None:
    r"""Return the index of the option that ``text`` states, or ``None`` where it states none or more than one.

    Where to read:
        * If a complete ``<answer>...</answer>`` pair exists, the last one is read and nothing else: neither what
          stands around it nor a later tag that is never closed, and wherever it stands. A pair is a closing tag with
          the nearest opening tag before it (and after the previous pair). Any case, any line breaks.
        * With answer tags but no complete pair, the text is unparsed.
        * Without answer tags, the whole text is read, less one leading complete ``<think>...</think>`` block. Any
          other ``<think>`` or ``</think>`` makes it unparsed.

    What counts as a statement, after NFKC, case folding, collapsing white space and dropping closing ``. , ; : !``:
        * a letter: ``B``, ``(b)``, ``[B]``, ``B)``, ``B.``, ``option B``;
        * an option's text, exactly: an article is not dropped ("a nodule" may be the letter A), nor is a "?";
        * a letter with its own option's text: ``B) CT``, ``B: CT``, ``B - CT``, ``B CT``, ``B (CT)``, ``CT (B)``;
        * any of these in brackets, quotes, emphasis or ``\boxed{}``, or after "The (final, correct, right, best)
          answer is", "Answer:" and the like.

    What is ambiguous, hence unparsed: a letter that is also the text of another option (["B", "A"]), a text that
    several options share, an option's text that also reads as a letter with another option's text, and two bare
    letters ("A, B") even where the second is the text of the first. A letter counts if it is that of an option in
    A to Z; an option beyond Z, or one whose text is empty or over 2,000 characters, is read by its other form only.

    Args:
        text: a model's output, of any length and content.
        options: the texts of the options in order, without their letters.

    Raises:
        ValueError: ``options`` is empty or a single string.
    """
    return _only(text, options, _readings)


def read_name(text: str, names: Sequence[str]) -> int | None:
    """Return the index of the name that ``text`` states, read as `read_answer` does, but for letters.

    For a list that was shown without letters, such as the specialties: there a "B" names nothing.

    Raises:
        ValueError: ``names`` is empty or a single string.
    """
    return _only(text, names, _named)


def _only(text: str, options: Sequence[str], reading: Callable[[str, Sequence[str]], set[int]]) -> int | None:
    """Return the one option that all the readings of what ``text`` states agree on."""
    if isinstance(options, str) or not options:
        raise ValueError("options: must be a non-empty sequence of option texts")
    statement = read_statement(text)
    if statement is None:
        return None
    texts = [_normalise(option) for option in options]
    found: set[int] = set()
    for form in _forms(_normalise(statement)):
        found |= reading(form, texts)
    return found.pop() if len(found) == 1 else None


def read_free_text(text: str) -> str | None:
    """Return the answer to a question without options, stripped and with white space collapsed, or ``None``.

    The last complete ``<answer>`` pair is read as by `read_answer`. Without answer tags the whole text counts, less a
    leading complete ``<think>`` block, if it has at most 200 characters. An empty answer, or one with a stray tag in
    it, is ``None``.
    """
    statement = read_statement(text)
    if statement is None or _TAG.search(statement):
        return None
    answer = " ".join(statement.split())
    paired = any(_kind(tag) == "answer" for tag in _TAG.finditer(text))  # else there were no answer tags at all
    return answer if answer and (paired or len(answer) <= _FREE_LIMIT) else None


def read_statement(text: str) -> str | None:
    """Return the part of an output that has to state the answer, as it is written; see `read_answer` for where.

    ``None`` where tags are missing or misplaced.
    """
    opening: int | None = None
    pair: slice | None = None
    thinks: list[re.Match[str]] = []
    tagged = False
    for tag in _TAG.finditer(text):
        kind = _kind(tag)
        if kind == "answer":
            opening = tag.end()
        elif kind == "/answer" and opening is not None:
            pair, opening = slice(opening, tag.start()), None
        elif kind.endswith("think"):
            thinks.append(tag)
        tagged = tagged or kind.endswith("answer")
    if pair is not None:
        return text[pair]
    if tagged:
        return None
    if not thinks:
        return text
    leading = not text[: thinks[0].start()].strip()
    if leading and [_kind(tag) for tag in thinks] == ["think", "/think"]:
        return text[thinks[1].end() :]
    return None


def same_text(a: str, b: str) -> bool:
    """Tell whether two open answers are the same after the normalisation of `read_answer`.

    Exact match only. An answer that is empty once normalised, or over 2,000 characters, is the same as none.
    """
    normalised = _normalise(a)
    return normalised != "" and normalised == _normalise(b)


def split_reasoning(text: str) -> str:
    """Return what the first complete ``<think>`` block holds, stripped, or "" where there is none.

    The block runs from the first opening tag to the first closing tag after it; reasoning cut off counts as none.
    """
    start: int | None = None
    for tag in _TAG.finditer(text):
        if start is None and _kind(tag) == "think":
            start = tag.end()
        elif start is not None and _kind(tag) == "/think":
            return text[start : tag.start()].strip()
    return ""


def well_formed(text: str) -> bool:
    """Tell whether the whole text is ``<think>...</think><answer>...</answer>``: the format reward of training.

    One of each tag, spelled exactly so, in this order, with only white space around and between the blocks. The
    answer must not be blank; the reasoning may be anything without such a tag.
    """
    tags = list(islice(_TAG.finditer(text), 5))
    if [tag.group() for tag in tags] != ["<think>", "</think>", "<answer>", "</answer>"]:
        return False
    around = text[: tags[0].start()] + text[tags[1].end() : tags[2].start()] + text[tags[3].end() :]
    return not around.strip() and bool(text[tags[2].end() : tags[3].start()].strip())


def _kind(tag: re.Match[str]) -> str:
    """Return "think", "/think", "answer" or "/answer"."""
    return tag["slash"] + tag["name"].lower()


def _normalise(text: str) -> str:
    """Return ``text`` in NFKC, case-folded, with single spaces and no closing punctuation; "" if over ``_LIMIT``."""
    text = " ".join(text.split())
    if len(text) > _LIMIT:
        return ""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(text.split()).rstrip(_CLOSING)  # NFKC makes new blanks: a lone accent is a blank and a mark
    return text if len(text) <= _LIMIT else ""  # and one character can become eighteen


def _forms(text: str) -> set[str]:
    """Return ``text`` and all it becomes without emphasis, lead phrases and wrapping; empty if there is no end."""
    forms: set[str] = set()
    todo = [text]
    while todo:
        form = todo.pop().lstrip().rstrip(_CLOSING)
        if not form or form in forms:
            continue
        if len(forms) == _MAX_FORMS:
            return set()  # a reading left out could be the one that contradicts
        forms.add(form)
        todo += [_EMPHASIS.sub(r"\2", form), _LATEX.sub(r"\1", form)]
        if lead := _LEAD.match(form):
            todo.append(form[lead.end() :])
        todo += [form[len(a) : -len(b)] for a, b in _WRAPS if form.startswith(a) and form[len(a) :].endswith(b)]
    return forms


def _readings(form: str, texts: Sequence[str]) -> set[int]:
    """Return the options that ``form`` as a whole can name: as a text, as a letter, or as a letter with a text."""
    found = _named(form, texts)
    if label := _LABEL.fullmatch(form):
        name = label[1].strip("()[]")
        if lettered := _lettered(name, texts):
            found |= lettered | _named(name, texts)  # "option A" is in doubt, too, where "A" is another option's text
    if pair := _LABEL_TEXT.fullmatch(form):
        found |= _agreed(pair[1].strip("()[].:"), pair[2], texts, marked=len(pair[1]) > 1)
    if pair := _TEXT_LABEL.fullmatch(form):
        found |= _agreed(pair[2], pair[1], texts, marked=False)
    return found


def _agreed(name: str, text: str, texts: Sequence[str], marked: bool) -> set[int]:
    """Return the option that has both this letter and this text, if any.

    Where the text is itself the letter of another option, as in "A, B", only a ``marked`` label, "A) B", is surely a
    label: otherwise both options are returned.
    """
    forms = _forms(text)
    found = {i for i in _lettered(name, texts) if texts[i] in forms}
    if found and not marked:
        found = found.union(*(_lettered(form, texts) for form in forms))
    return found


def _named(text: str, texts: Sequence[str]) -> set[int]:
    """Return the options with exactly this text."""
    return {i for i, other in enumerate(texts) if other == text}


def _lettered(name: str, texts: Sequence[str]) -> set[int]:
    """Return the option with this letter, if there is one."""
    index = LETTERS.lower().find(name) if len(name) == 1 else -1
    return {index} if 0 <= index < len(texts) else set()
