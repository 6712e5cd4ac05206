"""Figures of an answer to an open question: how much it is like the key, by words.

BLEU and ROUGE are TorchMetrics' (Apache-2.0). Its ROUGE follows Google's `rouge-score`, without the dependencies, and
nothing is downloaded.
"""

from mmedagent_graph.answers import same_text
from rl.grading import f1

ORDERS = (1, 2, 3, 4)
ROUGES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def open_figures(answer: str, key: str) -> dict[str, float]:
    """Exact match, token F1, BLEU-1 to BLEU-4 and ROUGE-1, -2 and -L, each from 0 to 1.

    Exact match and token F1 are those of `rl.grading`. BLEU is of this one answer and not smoothed (Papineni et al.,
    2002), a full stop being a word, as in MedEvalKit: an answer of two words has a BLEU-3 of 0, even if it is exact.
    ROUGE is the F-measure, of Latin letters and digits only, not stemmed. MedEvalKit's `rouge` package counts a word
    that is repeated once, and its "f1" is a recall: for them there is nothing here.

    Args:
        answer: as the reader gave it; "" where it gave none.
        key: the right answer.
    """
    from torchmetrics.functional.text import bleu_score, rouge_score  # takes seconds: it imports transformers

    said, right = (text.lower().replace(".", " .") for text in (answer, key))
    bleu = {f"bleu_{n}": float(bleu_score([said], [[right]], n_gram=n)) for n in ORDERS}
    found = rouge_score(answer, key, rouge_keys=tuple(ROUGES.values()))
    rouge = {name: float(found[f"{theirs}_fmeasure"]) for name, theirs in ROUGES.items()}
    return {"exact_match": float(same_text(answer, key)), "token_f1": f1(answer, key), **bleu, **rouge}
