"""What the rules of several toolkits have in common.

Invariant: a scorer looks at the text a fixed number of times, whatever is in it. Likeness alone can take longer, for
texts of many different characters.
"""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from mmedagent_graph.answers import LETTERS, letter, same_text
from rl.datasets.options import YES_NO

Scorer = Callable[[str, Sequence[str], str], bool]
"""Of a model's raw text, the options without their letters, and the right option's text: whether it counts as right."""
OPEN, CLOSE = "<answer>", "</answer>"


def place(options: Sequence[str], key: str) -> int:
    """Where the key stands among the options.

    Raises:
        ValueError: if it is none of them.
    """
    for index, option in enumerate(options):
        if option == key or same_text(option, key):
            return index
    raise ValueError("key: it is none of the options; it must be the text of one of them")


def letters(options: Sequence[str]) -> list[str]:
    """The options' letters, as in our prompts."""
    return list(LETTERS[: len(options)])


def yes_or_no(options: Sequence[str]) -> bool:
    """Whether that is what the question asks for."""
    return sorted(option.strip().lower() for option in options) == sorted(YES_NO)


def blocks(text: str) -> list[str]:
    """What stands between an answer tag and the next closing one; tags are spelled exactly so."""
    found: list[str] = []
    start = text.find(OPEN)
    while start >= 0 and (end := text.find(CLOSE, start)) >= 0:
        found.append(text[start + len(OPEN) : end])
        start = text.find(OPEN, end)
    return found


def lone_letter(text: str, lower: Sequence[str]) -> str:
    """The first paragraph where it is a letter, or what precedes the last one's full stop; else all of the text."""
    paragraphs = text.split("\n\n")
    for said in (paragraphs[0], paragraphs[-1].split(".")[0]):
        if said in lower:
            return said
    return text


def likest(text: str, options: Sequence[str]) -> int:
    """The option that is most like the text, by difflib's ratio; of equals, such as where nothing is alike, the first.

    The options have their letters before them, "b. cyst", as in OmniMedVQA and MedXpertQA. In a text of 200 characters
    and more difflib leaves out the frequent ones: next to nothing is alike then.
    """
    matcher = SequenceMatcher(b=text)

    def ratio(index: int) -> float:
        matcher.set_seq1(f"{letter(index)}. {options[index]}".lower())
        return matcher.ratio()

    return max(range(len(options)), key=ratio)
