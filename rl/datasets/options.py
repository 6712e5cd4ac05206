"""Options for closed questions of data sets that have none, by stated rules.

Yes/no questions get `yes` and `no`. Questions that name their answers ("Which is bigger, liver or spleen?") get these,
in the question's order. What remains draws up to three wrong answers from those that other closed questions of the
same kind have, by a seed that is the case's own: the options of a case do not depend on what else is loaded with it,
but for that vocabulary.
"""

import random
import re
from collections.abc import Sequence

from mmedagent_graph.answers import same_text

YES_NO = ("yes", "no")
WRONG = 3
"""At most so many wrong answers are drawn."""
ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)


def is_yes_no(answer: str) -> bool:
    """Whether an answer is yes or no: how the field tells the closed questions of VQA-RAD and PathVQA."""
    return answer.strip().lower() in YES_NO


def named_in(question: str, answer: str) -> list[str] | None:
    """The answers that a question names: `a, b or c` after a comma at its end, the right one among them.

    None where it names none, or where the right one is not exactly one of them.
    """
    before, found, last = question.strip().rstrip("?. ").rpartition(" or ")
    stem, *listed = before.split(",")
    named = [ARTICLE.sub("", part.strip(), count=1) for part in (*listed, last)]
    named = [part for part in named if part]  # "a, b, or c"
    if not (found and stem and len(named) > 1):
        return None
    right = [part for part in named if same_text(part, answer)]
    return [answer.strip() if part in right else part for part in named] if len(right) == 1 else None


def drawn(answer: str, vocabulary: Sequence[str], seed: str) -> list[str] | None:
    """The right answer among up to three others from a vocabulary, in a drawn order; None where there is no other.

    Args:
        answer: the right one.
        vocabulary: the answers of questions of the same kind; its order does not matter.
        seed: such as the case's id.
    """
    others: list[str] = []
    for text in sorted(vocabulary):
        if not any(same_text(text, known) for known in (answer, *others)):
            others.append(text)
    if not others:
        return None
    draw = random.Random(seed)
    options = [answer, *draw.sample(others, min(WRONG, len(others)))]
    draw.shuffle(options)
    return options
