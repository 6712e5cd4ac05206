"""What the unit tests put in place of real models and real images."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image
from pydantic import Field

INPUT_TOKENS, OUTPUT_TOKENS = 7, 3


class FakeModel(BaseChatModel):
    """Keeps the messages it is given and says what `answer` makes of them."""

    answer: Callable[[Sequence[BaseMessage]], str]
    seen: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "fake"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.seen.append(messages)
        usage = UsageMetadata(
            input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, total_tokens=INPUT_TOKENS + OUTPUT_TOKENS
        )
        message = AIMessage(self.answer(messages), usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def says(text: str) -> FakeModel:
    """A model that always says the same."""
    return FakeModel(answer=lambda _: text)


def answers(answer: str, because: str = "") -> FakeModel:
    """A model that always gives the same answer, well formed."""
    return says(f"<think>{because}</think><answer>{answer}</answer>")


def breaks(error: Exception) -> FakeModel:
    """A model whose every call fails."""

    def fail(_: Sequence[BaseMessage]) -> str:
        raise error

    return FakeModel(answer=fail)


def words(messages: Sequence[BaseMessage]) -> str:
    """All text of the messages."""
    return "\n".join(str(message.text) for message in messages)


def pictures(messages: Sequence[BaseMessage]) -> list[bytes]:
    """The bytes of all images in the messages, in order."""
    blocks = [block for message in messages if isinstance(message.content, list) for block in message.content]
    return [
        base64.b64decode(block["base64"]) for block in blocks if isinstance(block, dict) and block["type"] == "image"
    ]


def image(color: str = "red", mode: str = "RGB") -> Image.Image:
    """A small image of one colour."""
    return Image.new("RGB", (8, 6), color).convert(mode)


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    """The bytes as a data URL."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
