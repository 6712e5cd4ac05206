"""Options for closed questions of data sets that have none, by stated rules.

Yes/no questions get `yes` and `no`. Questions that name their answers ("Which is bigger, liver or spleen?") get these,
in the question's order. What remains draws up to three wrong answers from those that other closed questions of the
same kind have, by a seed that is the case's own: the options of a case do not depend on what else is loaded with it,
but for that vocabulary.

Invariant: the spelling of the options does not tell which one is right. The right one is spelled as the others are,
which may be otherwise than the data set spells its answer.
"""

import random
import re
from collections.abc import Sequence

from mmedagent_graph.answers import same_text

YES_NO = ("yes", "no")
WRONG = 3
"""At most so many wrong answers are drawn."""
WORDS = 4
"""An answer that a question lists has at most so many words."""
SENTENCE = frozenset(("which", "what", "is", "does", "do", "are", "in", "on"))
"""Words of the question's own sentence: what has one is no answer that it lists."""
ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)


def is_yes_no(answer: str) -> bool:
    """Whether an answer is yes or no: how the field tells the closed questions of VQA-RAD and PathVQA."""
    return answer.strip().lower() in YES_NO


def built(question: str, answer: str, vocabulary: Sequence[str], seed: str) -> list[str] | str:
    """The options of a question that is not answered by yes or no; a plain text says why there are none.

    Args:
        question: which may name its answers. What it names is never drawn: it could be as right.
        answer: the right one, among the options in their spelling.
        vocabulary: as in `drawn`.
        seed: as in `drawn`.
    """
    if named := named_in(question, answer) or either_or(question, answer, vocabulary):
        return named
    if _named(question, [answer]):  # beside what it does not name, that would give it away
        return "the question names the answer, but no options that can be read"
    unnamed = [text for text in vocabulary if not _named(question, [text])]
    return drawn(answer, unnamed, seed) or "no second option for its kind of question"


def named_in(question: str, answer: str) -> list[str] | None:
    """The answers that a question names, in its spelling: `a, b or c` after a comma at its end.

    None where it names none, where what stands there is a part of its sentence, or where the right one is not exactly
    one of them.
    """
    before, found, last = question.strip().rstrip("?. ").rpartition(" or ")
    stem, *listed = before.split(",")
    named = [ARTICLE.sub("", part.strip(), count=1) for part in (*listed, last)]
    named = [part for part in named if part]  # "a, b, or c"
    if not (found and stem and len(named) > 1):
        return None
    words = [part.lower().split() for part in named]
    if any(len(part) > WORDS or SENTENCE.intersection(part) for part in words):
        return None
    return _if_one_is(answer, named)


def either_or(question: str, answer: str, vocabulary: Sequence[str]) -> list[str] | None:
    """The two answers of a vocabulary that a question names, in its spelling: `... a ... or b ...`.

    None where there is not just one before the "or", or none right after it, or neither is right.
    """
    before, _, after = question.rpartition(" or ")
    after = ARTICLE.sub("", after.strip(), count=1)
    first, second = _named(before, vocabulary), _named(after, vocabulary)
    if len(first) != 1 or not second or not after.startswith(second[0]):  # of "T1 or T2 weighted MRI" not the MRI
        return None
    return _if_one_is(answer, [first[0], second[0]])


def drawn(answer: str, vocabulary: Sequence[str], seed: str) -> list[str] | None:
    """The right answer among up to three others from a vocabulary, in a drawn order; None where there is no other.

    Args:
        answer: the right one.
        vocabulary: the answers of questions of the same kind; its order does not matter. Of several spellings of one
            answer the first in the alphabet counts, whichever is right.
        seed: such as the case's id.
    """
    known: list[str] = []
    for text in sorted(vocabulary):
        if not any(same_text(text, other) for other in known):
            known.append(text)
    right = next((text for text in known if same_text(text, answer)), answer)
    others = [text for text in known if text != right]
    if not others:
        return None
    draw = random.Random(seed)
    options = [right, *draw.sample(others, min(WRONG, len(others)))]
    draw.shuffle(options)
    return options


def _named(text: str, vocabulary: Sequence[str]) -> list[str]:
    """The answers that a text has as whole words, in its order and spelling; of one within another the longer."""
    longest_first = sorted({word for word in vocabulary if word}, key=lambda word: (-len(word), word))
    pattern = "|".join(map(re.escape, longest_first))
    return re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text, re.IGNORECASE) if pattern else []


def _if_one_is(answer: str, named: list[str]) -> list[str] | None:
    return named if sum(same_text(part, answer) for part in named) == 1 else None
