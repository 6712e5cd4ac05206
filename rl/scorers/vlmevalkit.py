"""VLMEvalKit's scorer of questions with options (open-compass/VLMEvalKit: vlmeval/utils/matching_util.py@18fc37a)."""

from collections.abc import Sequence

from rl.scorers.reading import letters, place

BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def vlmevalkit(text: str, options: Sequence[str], key: str) -> bool:
    r"""Its rules without an LLM judge ("exact matching"): what they do not infer is wrong.

    The one option whose capital letter stands alone among the words, once most punctuation is blanks; where there is no
    such letter, or more than one, the one option whose text is in the text. A refusal, or a "Z" without any letter,
    is wrong.

    Kept: the article "A" is the letter. `\boxed{B}` is read, but `<answer>B</answer>` is all one word, hence not: tags
    hide letters, not texts. Texts are looked for in the reasoning too, and in parts of words: "no" is in "normal".

    Not reproduced: the judge, and the option that is drawn at random where it fails three times; newer versions, which
    look for the letter near the end and for texts in short outputs only; the text of its own failed requests.
    """
    said = _inferred(text, options)
    return said is not None and said == place(options, key)


def _inferred(text: str, options: Sequence[str]) -> int | None:
    words = set(text.translate(BLANKED).split())
    named = [index for index, name in enumerate(letters(options)) if name in words]
    if any(refusal in text for refusal in REFUSALS) or ("Z" in words and not named):
        return None
    if len(named) != 1:
        lower = text.lower()
        named = [index for index, option in enumerate(options) if option.lower() in lower]
    return named[0] if len(named) == 1 else None
