"""A first consultation, with the embedded clinic: no key, no GPU, no download.

    python examples/first_consultation.py

The clinic makes a case; triage and attending are its tiny Qwen2.5-VL, the three specialists are simulated.
"""

from mmedagent_graph import build_graph
from mmedagent_graph.images import default_store
from rl.clinic.cases import make_cases


def main() -> None:
    """Ask one question and print who said what."""
    graph = build_graph(
        triage="clinic:base",
        specialists=["clinic:doctor-1", "clinic:doctor-2", "clinic:doctor-3"],
        attending="clinic:base",
    )
    case = next(case for case in make_cases(20, seed=1, store=default_store()) if case.options)
    result = graph.invoke({"question": case.question, "options": case.options, "images": case.images})

    print(f"question   {case.question}  {' / '.join(case.options)}")
    print(f"referral   {result['referral']['specialty']}")
    for opinion in result["opinions"]:
        print(f"doctor {opinion['doctor']}   {opinion['answer']}")
    decision = result["decision"]
    print(f"decision   {decision['answer']}  (agreement {decision['agreement']:.0%}; right: {case.answer})")


if __name__ == "__main__":
    main()
