"""Kinds of outputs that models produce, one of each, on which the scorers can be compared."""

from rl.scorers.table import Output

FINDINGS = ("nodule", "cyst", "scar", "normal")
YES_NO = ("yes", "no")


def _finding(kind: str, text: str) -> Output:
    return Output(kind, text, FINDINGS, "cyst")


TYPICAL = (
    _finding("text", "<think>The wall is thin and smooth.</think><answer>cyst</answer>"),
    _finding("letter", "<think>The wall is thin and smooth.</think><answer>B</answer>"),
    _finding("lower-case letter", "<think>The wall is thin and smooth.</think><answer>b</answer>"),
    _finding("letter and text", "<think>The wall is thin and smooth.</think><answer>B. cyst</answer>"),
    _finding("letter in brackets", "<think>The wall is thin and smooth.</think><answer>(B)</answer>"),
    _finding("letter: text", "<think>The wall is thin and smooth.</think><answer>B: cyst</answer>"),
    _finding("box", "The wall is thin and smooth. \\boxed{B}"),
    _finding("two boxes", "It is \\boxed{A}, no, \\boxed{B}"),
    _finding("article", "<think>A thin wall.</think><answer>cyst</answer>"),
    _finding("bare letter", "B"),
    _finding("sentence", "The answer is B."),
    _finding("text below a heading", "**Answer:**\n\ncyst"),
    _finding("changed its mind", "<answer>A</answer> No, the wall is thin. <answer>B</answer>"),
    _finding("changed it for the worse", "<answer>B</answer> No, it is solid. <answer>A</answer>"),
    _finding("two answers", "<answer>A or B</answer>"),
    _finding("more than was asked", "<answer>a cyst, not a nodule</answer>"),
    _finding("other words", "<answer>cystic lesion</answer>"),
    _finding("cut off", "<think>The wall is thin and smooth, as in a cyst"),
    _finding("no answer", "I cannot tell from this image what it is."),
    Output("empty", "", FINDINGS, "nodule"),
    Output("yes/no: text", "<think>The bone is broken near its end.</think><answer>Yes</answer>", YES_NO, "yes"),
    Output("yes/no: letter", "<think>The bone is broken near its end.</think><answer>A</answer>", YES_NO, "yes"),
    Output("yes/no: sentence", "<answer>Yes, a fracture is seen</answer>", YES_NO, "yes"),
    Output("yes/no: normal", "<answer>normal bone</answer>", YES_NO, "no"),
    Output("yes/no of OmniMedVQA: letter", "<answer>A</answer>", ("Yes", "No"), "Yes", "omnimedvqa"),
    Output("yes/no of SLAKE: text", "<answer>yes</answer>", YES_NO, "yes", "slake"),
)
