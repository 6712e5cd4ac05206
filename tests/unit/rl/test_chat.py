"""Messages become typed blocks, their images in order; nothing is ever fetched."""

import base64

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from mmedagent_graph.nodes import Attending
from rl.chat import to_chat

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def colors(images):
    return [image.getpixel((0, 0)) for image in images]


def test_roles_and_texts():
    chat, images = to_chat([SystemMessage("s"), HumanMessage("u"), AIMessage([{"type": "text", "text": "a"}, "b"])])
    assert images == []
    assert chat == [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]


def test_images_stay_in_order_and_in_place(png):
    block = {color: {"type": "image", "base64": base64.b64encode(png(color)).decode(), "mime_type": "image/png"}
             for color in (RED, GREEN, BLUE)}  # fmt: skip
    messages = [HumanMessage([block[GREEN], {"type": "text", "text": "t"}, block[RED]]), HumanMessage([block[BLUE]])]
    chat, images = to_chat(messages)
    assert [[part["type"] for part in turn["content"]] for turn in chat] == [["image", "text", "image"], ["image"]]
    assert colors(images) == [GREEN, RED, BLUE]
    assert {image.mode for image in images} == {"RGB"}


@pytest.mark.parametrize(
    "wrap",
    [lambda url: {"type": "image", "url": url}, lambda url: {"type": "image_url", "image_url": {"url": url}}],
    ids=["image", "image_url"],
)
def test_data_urls_are_read(png, wrap):
    url = "data:image/png;base64," + base64.b64encode(png(BLUE)).decode()
    chat, images = to_chat([HumanMessage([wrap(url)])])
    assert chat[0]["content"] == [{"type": "image"}]
    assert colors(images) == [BLUE]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image_url", "image_url": {"url": "http://example.org/a.png;base64,AAAA"}},
        {"type": "image", "url": "file:///etc/passwd"},
        {"type": "image", "url": "data:image/png,abc"},
        {"type": "image"},
    ],
)
def test_only_inline_data_is_taken(block):
    with pytest.raises(ValueError, match=f"{block['type']}.*base64"):
        to_chat([HumanMessage([block])])


def test_the_attendings_prompt_keeps_its_words_and_images(images, trace, png):
    messages = Attending(images).render(trace(images=[images.put(png(GREEN)), images.put(png(RED))]).given())
    chat, pictures = to_chat(messages)
    assert [turn["role"] for turn in chat] == ["system", "user"]
    assert ["".join(part.get("text", "") for part in turn["content"]) for turn in chat] == [m.text for m in messages]
    assert [part["type"] for part in chat[1]["content"]] == ["image", "image", "text"]
    assert colors(pictures) == [GREEN, RED]
