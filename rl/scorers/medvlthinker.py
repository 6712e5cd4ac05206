"""MedVLThinker's two scorers (UCSC-VLAA/MedVLThinker; its code as in the fork Wangningsen/MedVLThinker@938be75).

All its questions have options, yes/no too. Right is, without outer blanks and letter case, exactly "B", "cyst" or
"B. cyst": not "(B)", "B)", "B: cyst", "B." or a box. Nothing is guessed.
"""

import re
from collections.abc import Sequence

from mmedagent_graph.answers import letter
from rl.scorers.reading import OPEN, blocks, place

LEADS = ("answer:", "answer is:", "answer is", "is:")
"""The first of these that occurs is what the answer follows."""
TAGS = ("<think>", "</think>", OPEN, "</answer>")


def medvlthinker(text: str, options: Sequence[str], key: str) -> bool:
    """As scored at run time (`eval/run_offline_inference.py`): the first answer block, or else all of the text.

    Not reproduced: the average, the best and the majority of several outputs to a question.
    """
    return _exactly((blocks(text) or [text])[0], options, key)


def medvlthinker_regrade(text: str, options: Sequence[str], key: str) -> bool:
    """As regraded afterwards (`analysis/regrade_eval_results.py`), which reads more.

    What is read: the first line of the last answer block, or else what follows the last "answer:", or "answer is:" and
    the like, up to the end of the line.

    Kept: "is:" leads wherever it stands, as in "The diagnosis:"; of several leads in one line the first counts.

    Not reproduced: its flag for LLaVA-Med, by which any text that holds the right option's text is right.
    """
    stated = _stated(text)
    for tag in TAGS:
        stated = stated.replace(tag, "")
    return _exactly(stated, options, key)


def _stated(text: str) -> str:
    if found := blocks(text):
        return re.split(r"[\r\n]", found[-1].strip(), maxsplit=1)[0]
    for lead in LEADS:
        if rests := re.findall(rf"{lead}\s*(.*)", text, re.IGNORECASE):
            return str(rests[-1])
    return text


def _exactly(stated: str, options: Sequence[str], key: str) -> bool:
    right = place(options, key)
    forms = (letter(right), options[right], f"{letter(right)}. {options[right]}")
    return stated.strip().lower() in [form.strip().lower() for form in forms]
