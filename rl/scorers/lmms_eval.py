"""Two scorers of lmms-eval (EvolvingLMMs-Lab/lmms-eval: tasks/mmmu/utils.py@02bc1c0, tasks/medevalkit@5a58626)."""

import hashlib
from collections.abc import Sequence

from rl.scorers.medevalkit import BOX
from rl.scorers.reading import blocks, letters, likest, lone_letter, place, yes_or_no

SHAPES = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))
"""How a letter is looked for, and by what the last one is found where there are several."""
LEADS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "final answer is", "final answer",
)  # fmt: skip
LONGEST = 300


def lmms_eval_mmmu(text: str, options: Sequence[str], key: str) -> bool:
    """As in `mmmu_val`, whose parser is MMMU's own but for its second shape.

    The capital letters found as "(B)"; if none, "B "; if none, "B."; if none, and there are more than five words, the
    options whose text is in the text. Of several the one that comes last. None: one at random.

    Kept: tags and boxes mean nothing. "B " may end a word, so "DNA is" says A. Where several letters are found with a
    full stop or at the end of words, the place of the last is sought between blanks: it is often not there, and the
    first letter wins.

    Other than there: the original draws unseeded, so its numbers change from run to run. Ours draws by a hash of text
    and options, so that a table can be made again. Either is right by chance, once in as many as there are options.

    Not reproduced: open questions, several samples, and the variants with a judge or for reasoning.
    """
    return _mmmu(text, options) == place(options, key)


def _mmmu(text: str, options: Sequence[str]) -> int:
    for char in ",.!?;:'":
        text = text.strip(char)
    text = f" {text} "
    for shape, where in SHAPES:
        named = {i: text.rfind(where.format(n)) for i, n in enumerate(letters(options)) if shape.format(n) in text}
        if named:
            return max(named, key=named.__getitem__)
    lower = text.lower()
    found = {i: lower.rfind(option.lower()) for i, option in enumerate(options)} if len(text.split()) > 5 else {}
    last = max(found.items(), key=lambda item: item[1], default=(0, -1))
    return last[0] if last[1] >= 0 else drawn(text, options)


def drawn(text: str, options: Sequence[str]) -> int:
    """One of the options, evenly, and the same one for the same text and options."""
    seed = "\0".join([text, *options]).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(seed).digest()) % len(options)


def lmms_eval_medevalkit(text: str, options: Sequence[str], key: str) -> bool:
    r"""As in its group `medevalkit`: MedEvalKit's rules (`rl.scorers.medevalkit`) as ported there.

    Other than MedEvalKit: the first box counts, not the last, and up to its first closing brace; the first answer
    block, not all; what follows the first "answer:", not the last. With options, a box comes before the blocks, a blank
    after a colon does not matter, and a sentence of more than 300 characters is wrong.

    Kept: "no" is in "normal" there, too, and what cannot be read is the option most like it.

    Not reproduced: SLAKE's rule (where it is not yes or no, the exact text), PMC-VQA's form of the options ("A:..."),
    and the cap of 64 tokens, before which no model that thinks comes to its answer. There is no verdict on SLAKE, nor
    on the benchmarks that the group lacks (`rl.scorers.RULES`).
    """
    if yes_or_no(options):
        said = _stated(text).lower().replace("\n", "").replace(".", "")
        return ("yes" in said) != ("no" in said) and key.strip().lower() in said
    lower = [name.lower() for name in letters(options)]
    text = _stated(lone_letter(text.lower(), lower)).strip().lower().replace("\n", "")
    said = text.split(".")[0].split(":")[-1].strip()
    if len(said) > LONGEST:
        return False
    return (lower.index(said) if said in lower else likest(text, options)) == place(options, key)


def _stated(text: str) -> str:
    text = text.strip()
    for line in text.split("\n"):
        _, box, rest = line.partition(BOX)
        if box and (end := rest.find("}", 1)) >= 0:
            return rest[:end].strip()
    if found := blocks(text):
        return found[0].strip()
    text = text.lower()
    for lead in LEADS:
        text = text.partition(lead)[2] if lead in text else text
    return text.strip().lstrip(":").strip()
