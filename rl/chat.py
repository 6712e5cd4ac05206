"""From LangChain's messages to what transformers' chat templates and TRL take.

Invariant: every prompt that a policy sees, in training and at inference, has passed through `to_chat`; so the token
ids of the two are equal by construction.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from PIL import Image

ROLES = {"system": "system", "human": "user", "ai": "assistant"}


def to_chat(messages: Sequence[BaseMessage]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages as a conversation of typed blocks, and the images that its image blocks stand for, in order."""
    chat, images = [], []
    for message in messages:
        blocks: list[dict[str, str]] = []
        content = [message.content] if isinstance(message.content, str) else message.content
        for block in content:
            if isinstance(block, str):
                blocks.append({"type": "text", "text": block})
            elif block["type"] == "text":
                blocks.append({"type": "text", "text": block["text"]})
            else:
                images.append(_image(block))
                blocks.append({"type": "image"})
        chat.append({"role": ROLES[message.type], "content": blocks})
    return chat, images


def text_turns(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Messages as turns of text alone: TRL puts a row's images where our prompts have them, before the user's words."""
    chat, _ = to_chat(messages)
    texts = ["".join(block.get("text", "") for block in turn["content"]) for turn in chat]
    return [{"role": turn["role"], "content": text} for turn, text in zip(chat, texts, strict=True)]


def _image(block: dict[str, Any]) -> Image.Image:
    """The picture in a LangChain image block; only bytes are taken, never an address."""
    data = block.get("base64")
    if data is None:
        url = block.get("url") or block.get("image_url", {}).get("url", "")
        head, _, data = url.partition(";base64,")
        if not head.startswith("data:") or not data:
            raise ValueError(f"message: a {block['type']!r} block without inline data; give base64 or a data URL")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return image.convert("RGB")


def tokenize(processor: Any, prompts: Sequence[Sequence[BaseMessage]]) -> Any:
    """Model inputs for a batch of prompts, each ending where the answer begins.

    Returns:
        A `BatchFeature` of tensors, with `input_ids` and `attention_mask` of shape (prompts, longest), padded on the
        left, and the images' `pixel_values` and `image_grid_thw` where there are any.
    """
    filled = []
    for messages in prompts:
        chat, images = to_chat(messages)
        remaining = iter(images)
        for block in (block for message in chat for block in message["content"] if block["type"] == "image"):
            block["image"] = next(remaining)
        filled.append(chat)
    return processor.apply_chat_template(
        filled,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
