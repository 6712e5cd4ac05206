"""Case: what a consultation is asked, checked before any model is called."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmedagent_graph.answers import LETTERS, same_text
from mmedagent_graph.chat import case_of_chat, images_of_chat
from mmedagent_graph.images import ImageStore
from mmedagent_graph.state import CaseFields


class Case(BaseModel):
    """A medical question with its options and images.

    Raises:
        ValidationError: (a ValueError) that names the field and what is valid.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    question: str
    """What is asked; not empty."""
    options: list[str] = Field(default_factory=list, max_length=len(LETTERS))
    """The answers to choose from, two or more and different; empty for a question answered in free text."""
    images: list[Any] = Field(default_factory=list)
    """Paths, bytes, PIL images, data URLs or references into the graph's image store; may be empty."""
    context: str | None = None
    """Anything known beside the images: history, an abstract."""

    @classmethod
    def of(cls, given: Any) -> "Case":
        """The case in what a graph was given: a `Case`, its fields, or `messages`.

        A field stands before the messages; beside a question, nothing but their images is looked at.

        Raises:
            ValueError: naming the field and what is valid.
        """
        if isinstance(given, Case):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(f"input: cannot use a {type(given).__name__}; give a mapping with question or messages")
        fields = {name: given[name] for name in cls.model_fields if given.get(name) is not None}
        if given.get("messages"):
            if "question" not in fields:
                fields = case_of_chat(given["messages"]) | fields
            elif "images" not in fields:
                fields["images"] = images_of_chat(given["messages"])
        return cls.model_validate(fields)

    @field_validator("question")
    @classmethod
    def _question_is_asked(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("question is empty; give the question as text")
        return question.strip()

    @field_validator("options")
    @classmethod
    def _options_differ(cls, options: list[str]) -> list[str]:
        options = [option.strip() for option in options]
        if len(options) == 1:
            raise ValueError(f"options has one entry, {options[0]!r}; give two or more, or none for a free answer")
        for i, option in enumerate(options):
            if not option:
                raise ValueError(f"options[{i}] is empty; every option needs a text")
            for j, earlier in enumerate(options[:i]):
                if option == earlier or same_text(option, earlier):
                    raise ValueError(f"options[{i}] {option!r} repeats options[{j}] {earlier!r}; options must differ")
        return options

    def fields(self, store: ImageStore) -> CaseFields:
        """The case as it flows: images put into `store` and replaced by their references.

        Raises:
            ValueError: naming `images[i]` where an image cannot be read.
        """
        refs = []
        for i, image in enumerate(self.images):
            try:
                refs.append(store.put(image))
            except ValueError as error:
                raise ValueError(f"images[{i}]: {error}") from error
        return CaseFields(question=self.question, options=self.options, images=refs, context=self.context)
