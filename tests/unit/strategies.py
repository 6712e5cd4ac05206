"""Traces of every shape, for property tests."""

from hypothesis import settings
from hypothesis import strategies as st

from rl.traces import NodeCall, Trace

quiet = settings(deadline=None, max_examples=60)
text = st.text(st.characters(codec="utf-8"), max_size=12)
maybe = st.none() | text
count = st.integers(0, 9)
index = st.none() | st.integers(0, 3)
share = st.none() | st.floats(0, 1)
number = st.floats(allow_nan=False, allow_infinity=False)
tokens = st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4)
logprobs = st.none() | st.lists(st.floats(max_value=0, allow_nan=False), max_size=4)
finish = st.none() | st.sampled_from(["stop", "length"])
opinion = st.fixed_dictionaries(
    {"specialty": text, "doctor": count, "answer": maybe, "index": index, "reasoning": text, "error": maybe}
)
decision = st.fixed_dictionaries(
    {
        "answer": maybe,
        "index": index,
        "reasoning": text,
        "agreement": share,
        "entropy": share,
        "opinions": count,
        "votes": count,
        "tally": st.lists(st.fixed_dictionaries({"answer": text, "index": index, "votes": count}), max_size=2),
        "confidence": share,
        "abstained": st.booleans(),
        "review": st.none() | st.sampled_from(["approved", "changed"]),
    }
)
usage = st.fixed_dictionaries({"calls": count, "cached": count, "input_tokens": count, "output_tokens": count})
call = st.builds(
    NodeCall,
    node=text,
    specialty=maybe,
    doctor=st.none() | count,
    vote=st.none() | count,
    model=maybe,
    text=text,
    prompt_ids=tokens,
    completion_ids=tokens,
    logprobs=logprobs,
    finish=finish,
)
a_trace = st.builds(
    Trace,
    case=text,
    question=text,
    options=st.lists(text, max_size=3),
    images=st.lists(text, max_size=2),
    context=maybe,
    answer=maybe,
    specialty=maybe,
    groups=st.dictionaries(text, text, max_size=2),
    referral=st.none() | st.fixed_dictionaries({"specialty": maybe, "reasoning": text}),
    opinions=st.lists(opinion, max_size=3),
    decision=st.none() | decision,
    usage=st.dictionaries(text, usage, max_size=2),
    calls=st.lists(call, max_size=2),
    node=text,
    perspective=maybe,
    text=maybe,
    prompt_ids=tokens,
    completion_ids=tokens,
    logprobs=logprobs,
    finish=finish,
    policy=maybe,
    step=st.none() | st.integers(1, 10**6),
    tier=st.none() | st.sampled_from(["easy", "medium", "hard"]),
    rewards=st.dictionaries(text, st.none() | number, max_size=2),
    reward=st.none() | number,
)
