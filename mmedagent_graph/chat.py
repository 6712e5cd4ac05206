"""A consultation as a chat: the case in a conversation, and the decision as a reply."""

import re
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.utils import convert_to_messages

from mmedagent_graph.answers import LETTERS
from mmedagent_graph.state import CaseFields, Decision

OPTION = re.compile(r"\s*\(?([A-Z])[.):]\s+(\S.*)")
NAME = "attending"


def case_of_chat(messages: Any) -> dict[str, Any]:
    """The fields of the case that a conversation asks about.

    The question is the last human message. Its closing lines `A. ...`, `B. ...` (from A on, two or more) are the
    options. Its images are the case's; where it has none, those of the last human message before it that has: a
    conversation is about one patient. Earlier words are not looked at.

    Args:
        messages: what LangGraph takes for messages. Images may be in any of LangChain's block formats, and in OpenAI's
            or Anthropic's; files (`application/dicom`) as file blocks.

    Raises:
        ValueError: if there is no human message, or a block that is neither text nor an image.
    """
    human = _human(messages)
    if not human:
        raise ValueError("messages: there is no human message; give the question as one")
    question, options = _options(str(human[-1].text))
    return {"question": question, "options": options, "images": _shown(human)}


def images_of_chat(messages: Any) -> list[str]:
    """The images that a conversation is about, as in `case_of_chat`; it need not ask anything."""
    return _shown(_human(messages))


def asked(case: CaseFields, messages: Any = None) -> HumanMessage:
    """The case as a human message for a chat's record: with the images' references, not their bytes.

    Args:
        case: the case.
        messages: the chat that asked it; the message keeps its id.
    """
    human = _human(messages) if messages else []
    options = [f"{LETTERS[i]}. {option}" for i, option in enumerate(case["options"])]
    lines = [case["question"], *options, *(f"[image {ref}]" for ref in case["images"])]
    return HumanMessage("\n".join(lines), id=human[-1].id if human else None)


def reply(decision: Decision) -> AIMessage:
    """The decision as a chat message."""
    if decision["abstained"]:
        leading = decision["tally"][0]["answer"] if decision["tally"] else "none readable"
        share = decision["confidence"] or 0.0
        return AIMessage(f"No decision: a human must decide. Leading answer: {leading} ({share:.0%}).", name=NAME)
    if decision["answer"] is None:
        return AIMessage("No decision: the attending's answer could not be read.", name=NAME)
    return AIMessage("\n\n".join(filter(None, [decision["answer"], decision["reasoning"]])), name=NAME)


def _options(text: str) -> tuple[str, list[str]]:
    """The question, and the options in its closing lines."""
    lines = text.strip().splitlines()
    found = len(lines)
    while found and OPTION.fullmatch(lines[found - 1]):
        found -= 1
    matches = [match for line in lines[found:] if (match := OPTION.fullmatch(line))]
    letters = "".join(match[1] for match in matches)
    if len(letters) < 2 or letters != LETTERS[: len(letters)]:
        return text.strip(), []
    return "\n".join(lines[:found]).strip(), [match[2].strip() for match in matches]


def _human(messages: Any) -> list[HumanMessage]:
    try:
        said = convert_to_messages(messages if isinstance(messages, list) else [messages])
    except (TypeError, NotImplementedError, ValueError) as error:
        raise ValueError(f"messages: not a list of chat messages ({type(error).__name__})") from error
    return [message for message in said if isinstance(message, HumanMessage)]


def _shown(human: Sequence[HumanMessage]) -> list[str]:
    return next(filter(None, map(_images, reversed(human))), [])


def _images(message: BaseMessage) -> list[str]:
    blocks: Sequence[Any] = message.content_blocks
    return [_image(block) for block in blocks if block["type"] not in ("text", "text-plain")]


def _image(block: dict[str, Any]) -> str:
    """The image in a content block: a URL, a data URL or a reference, for the image store to judge."""
    if block["type"] not in ("image", "file"):
        raise ValueError(f"messages: cannot use a block of type {block['type']!r}; give text, image or file blocks")
    if "base64" in block:
        return f"data:{block.get('mime_type') or 'application/octet-stream'};base64,{block['base64']}"
    if "url" in block or "file_id" in block:
        return str(block.get("url") or block["file_id"])
    raise ValueError(f"messages: an {block['type']} block has no base64, url or file_id")
