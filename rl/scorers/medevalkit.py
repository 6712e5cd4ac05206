"""MedEvalKit's scorer (alibaba-damo-academy/MedEvalKit).

From its utils/VQA_RAD, and from utils/utils.py and utils/OmniMedVQA as in the fork Moenupa/MedEvalKit@23134e0.
"""

from collections.abc import Sequence

from rl.scorers.reading import OPEN, blocks, letters, likest, lone_letter, place, yes_or_no

BOX = "\\boxed{"
LEADS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "\u7b54\u6848:", "final answer",
    "final answer is",
)  # fmt: skip
"""In this order, and each that occurs: the answer is what follows it. The Chinese one is "answer:"."""


def medevalkit(text: str, options: Sequence[str], key: str) -> bool:
    r"""Yes/no questions as in VQA-RAD and PathVQA, all others as `medevalkit_choice`.

    What is read: the last box, or all answer blocks, or the whole text; of it what follows the last "answer:" and the
    like. With yes and no it is right where it holds just one of the two, and that is the key. With other options it is
    right if it is the letter; where it is no letter, the option most like it counts.

    Kept: "no" is looked for as a part of words, so "normal", "nodule" and "know" say no. An answer to a yes/no question
    by its letter is wrong, for it is asked there without letters. Whatever cannot be read is a guess by likeness, which
    is the first option where nothing is alike. The word "boxed" without a box hides all the text. A letter after any
    other colon than that of "answer:" keeps the blank before it, and is not read.

    Not reproduced: SLAKE's rule (the exact text), the rule for MMMU (a guess at random), PMC-VQA's form of the options
    ("A:..."), and the counting faults of some versions. On SLAKE and MMMU there is no verdict (`rl.scorers.RULES`).
    """
    return _yes_no(text, key) if yes_or_no(options) else medevalkit_choice(text, options, key)


def medevalkit_choice(text: str, options: Sequence[str], key: str) -> bool:
    """Its rule for OmniMedVQA, where yes and no have letters as well, and MedXpertQA: as `medevalkit` has it."""
    lower = [name.lower() for name in letters(options)]
    text = _stated(lone_letter(_tagged(text).lower(), lower)).strip().lower().replace("\n", "")
    said = text.split(".")[0].split(":")[-1]
    return (lower.index(said) if said in lower else likest(text, options)) == place(options, key)


def _yes_no(text: str, key: str) -> bool:
    said = boxed(text)
    if said == "None":
        said = _tagged(text)
    said = _stated(said.lower().strip()).replace("\n", "").replace(".", "")
    return ("yes" in said) != ("no" in said) and key.strip().lower() in said


def _stated(text: str) -> str:
    text = text.lower()
    if "boxed" in text:
        text = boxed(text)
    elif OPEN in text:
        text = _tagged(text)
    for lead in LEADS:
        text = text.rpartition(lead)[2]
    return text


def _tagged(text: str) -> str:
    """All answer blocks, or else the whole text."""
    return " ".join(blocks(text)).strip() or text


def boxed(text: str) -> str:
    r"""What the last `\boxed{}` holds, braces and all; "None" where there is none, or it is not closed.

    As in hiyouga/MathRuler, which MedEvalKit reads boxes with.
    """
    _, found, rest = text.rpartition(BOX)
    depth = 1
    for end, char in enumerate(rest if found else ""):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[:end].strip()
    return "None"
