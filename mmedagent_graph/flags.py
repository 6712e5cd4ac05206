"""The flags of the command line."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmedagent_graph.defaults import CLINIC, VARIABLES

Command = Callable[[argparse.Namespace], int]
SEVERAL: dict[str, Any] = {"action": "append", "default": []}


class _Frame(argparse.Action):
    """`--frame N`: the image before it becomes one frame of a file."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Turn the last image into a path and a frame."""
        if not namespace.image or isinstance(namespace.image[-1], dict):
            parser.error("argument --frame: give it once, after the --image that it belongs to")
        namespace.image[-1] = {"image": namespace.image[-1], "frame": values}


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return number


def _votes(text: str) -> int | str:
    try:
        return text if text == "adaptive" else _at_least(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or adaptive") from None


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def parser(consult: Command, consult_many: Command, description: str | None) -> argparse.ArgumentParser:
    """The parser; what it parses holds its `command`, which takes it and returns an exit code."""
    whole = argparse.ArgumentParser(
        prog="python -m mmedagent_graph", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    one = commands.add_parser(
        "consult",
        usage="%(prog)s --question TEXT [--option TEXT ...] [--image FILE [--frame N] ...] [flags]",
        help="one consultation, shown as it happens",
        epilog="A value that begins with a dash is given with =, as in --option=-5.",
        allow_abbrev=False,
    )
    case = one.add_argument_group("the case")
    case.add_argument("--question", required=True, metavar="TEXT", help="what is asked")
    case.add_argument("--option", **SEVERAL, metavar="TEXT", help="an answer to choose from: two or more, or none")
    case.add_argument("--image", **SEVERAL, metavar="FILE", help="an image; may be given several times")
    case.add_argument("--frame", type=_at_least(0), action=_Frame, metavar="N", help="of the image before it, from 0")
    case.add_argument("--context", metavar="TEXT", help="anything known beside the images")
    _add_graph(one)
    how = one.add_argument_group("how it is shown")
    how.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")
    how.add_argument("--review", action="store_true", help="ask on the terminal before the decision is released")
    how.add_argument("--debug", action="store_true", help="show tracebacks")
    one.set_defaults(command=consult)

    many = commands.add_parser(
        "consult-many",
        usage="%(prog)s CASES.jsonl --out RESULTS.jsonl [flags]",
        help="all cases of a file, a line of JSON for each",
        epilog="A case that failed is a line with its error; the same command tries it again.",
        allow_abbrev=False,
    )
    cases = many.add_argument_group("the cases")
    cases.add_argument(
        "cases", type=Path, metavar="CASES.jsonl", help="a case a line: id, question, options, image, ..."
    )
    cases.add_argument("--split", metavar="NAME", help="only the rows of this split")
    cases.add_argument("--limit", type=_at_least(1), metavar="N", help="only the first N of them")
    _add_graph(many)
    how = many.add_argument_group("how it is done")
    how.add_argument("--out", type=Path, required=True, metavar="FILE", help="results; what is done there is skipped")
    how.add_argument("--concurrency", type=_at_least(1), default=8, metavar="N", help="consultations at a time (8)")
    how.add_argument("--debug", action="store_true", help="show tracebacks")
    many.set_defaults(command=consult_many)
    return whole


def _add_graph(parser: argparse.ArgumentParser) -> None:
    """The flags of both commands: what `build_graph` takes."""
    models = parser.add_argument_group("models", "such as openai:gpt-4o or vllm:Qwen/Qwen2.5-VL-7B-Instruct")
    for name in CLINIC:
        several: dict[str, Any] = {"nargs": "+"} if name == "specialists" else {}
        number = "one for all three doctors, or one for each" if several else "model string"
        fallback = "the clinic's doctors" if several else CLINIC[name]
        models.add_argument(
            f"--{name}", metavar="MODEL", help=f"{number}; default: ${VARIABLES[name]}, or {fallback}", **several
        )
    models.add_argument(
        "--hospital",
        metavar="PLACE",
        help=f"folder or address of a hospital, for whoever is not named; default: ${VARIABLES['hospital']}",
    )
    models.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="of every call; default: none")
    models.add_argument("--retries", type=_at_least(0), default=0, metavar="N", help="of calls that may work later (0)")
    models.add_argument(
        "--cache", type=Path, metavar="FILE", help="an SQLite file that keeps answers: nothing is asked twice"
    )
    models.add_argument("--images", type=Path, metavar="DIR", help="keep images here; default: a temporary folder")
    decision = parser.add_argument_group("the decision")
    decision.add_argument("--votes", type=_votes, metavar="N", help="how often the attending is asked, or adaptive (1)")
    decision.add_argument("--abstain-below", type=float, metavar="SHARE", help="withhold a weaker majority (0 to 1)")
    decision.add_argument("--max-referrals", type=_at_least(0), metavar="N", help="further specialties it may ask (0)")
