"""What the page's buttons do.

Invariant: a case goes from the form to the graph and from the graph's stream to the page; what happened is kept in the
session's `Visit` and nowhere else, so that two sessions never meet.
"""

import asyncio
import contextlib
import dataclasses
import functools
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import ValidationError

from mmedagent_graph.app.chart import STREAM, Chart
from mmedagent_graph.app.layout import AS_BUILT, TO_THE_CHART, Layout
from mmedagent_graph.app.picture import Picture
from mmedagent_graph.app.render import chart_html, notice_html, previews_html
from mmedagent_graph.case import Case
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.context import Context
from mmedagent_graph.images import ImageStore

Example = Callable[[ImageStore], Mapping[str, Any]]
"""Makes a case to try: `question`, `options`, and `images` that it has put into the store."""
Updates = dict[Any, Any]
"""What becomes of the components."""
Given = Case | Command[Any] | None | Updates
"""What a run is begun with, or gone on with; or, where that cannot be said, what becomes of the components."""
SHOWN = 500
"""So many characters of a failure are shown."""


@dataclasses.dataclass
class Visit:
    """What one browser session is at."""

    images: list[str] = dataclasses.field(default_factory=list)
    """References into the graph's image store."""
    stack: tuple[str, bytes] | None = None
    """A file of several frames, by name, of which none has been chosen yet."""
    thread: str | None = None
    """Of the consultation in the graph's checkpointer; every consultation has its own."""
    context: dict[str, Any] | None = None
    chart: Chart = dataclasses.field(default_factory=Chart)


def build_app(graph: Consultation, example: Example | None = None) -> gr.Blocks:
    """The consulting room for a graph; open it with `mmedagent_graph.app.server.serve`.

    Args:
        graph: what `build_graph` returns, with nodes and models of your own. It needs a `checkpointer`. A decision is
            reviewed before it is released if the graph was built with `review=True`, or with
            `context_schema=Context` (or a subclass): the page then asks for the review itself, and offers votes.
            Without either, decisions are shown as they are made.
        example: makes cases for the button "Example case". Default: there is no such button.

    Raises:
        ValueError: if the graph has no checkpointer.
    """
    if not isinstance(graph.checkpointer, BaseCheckpointSaver):
        raise ValueError("graph: the room needs a checkpointer; build_graph(..., checkpointer=InMemorySaver())")
    page: gr.Blocks = Room(graph, example).page
    return page


def followed(button: Callable[..., Given]) -> Callable[..., AsyncIterator[Updates]]:
    """Makes of what a button gives to the graph what becomes of the page while the graph runs with it."""

    @functools.wraps(button)
    async def follow(room: "Room", visit: Visit, *fields: Any) -> AsyncIterator[Updates]:
        given = button(room, visit, *fields)
        if isinstance(given, dict):  # it cannot be used, and the page says why
            yield given
            return
        async with contextlib.aclosing(room.follow(visit, given)) as run:
            async for updates in run:
                yield updates

    return follow


class Room(Layout):
    """The page: its components, and what they do."""

    def __init__(self, graph: Consultation, example: Example | None) -> None:
        self.graph, self.example = graph, example
        self.store = graph.builder.images
        schema = graph.builder.context_schema
        self.changeable = isinstance(schema, type) and issubclass(schema, Context)
        self.picture = Picture(graph.get_graph())
        super().__init__(chart_html(Chart()), self.picture.svg({}, ()), self.changeable, bool(example))
        with self.page:
            self.visit = gr.State(Visit(), delete_callback=self._forget)
            self._connect()

    def _connect(self) -> None:
        visit, asked = self.visit, [self.question, self.options, self.context, self.votes]
        at_once: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        shown = [self.visit, self.chart, self.drawing, self.review, self.review_notice, self.retry, self.consult]
        shown += [self.notice, self.approve, self.another, self.free, self.why, self.specialty]
        pictures = [self.visit, self.drop, self.previews, self.drop_notice, self.frames]

        self.drop.upload(self.put, [visit, self.drop], pictures, **at_once)
        self.add_frame.click(self.put_frame, [visit, self.frame], pictures, **at_once)
        self.previews.click(self.remove, [visit], pictures, **at_once)
        runs: list[Any] = [
            self.consult.click(self.ask, [visit, *asked], shown, **at_once),
            self.retry.click(self.go_on, [visit], shown, **at_once),
            self.approve.click(self.approved, [visit], shown, **at_once),
            self.change.click(self.changed, [visit, self.another, self.free, self.why], shown, **at_once),
            self.hear.click(self.heard, [visit, self.specialty], shown, **at_once),
        ]
        for button in (self.consult, self.retry, self.hear):
            button.click(None, js=TO_THE_CHART, api_visibility="private")
        everything = [*shown, *pictures[1:], *asked]
        self.clear.click(self.cleared, [visit], everything, cancels=runs, **at_once)
        if self.example:
            self.try_example.click(self.tried, [visit], everything, cancels=runs, **at_once)

    # The images

    async def put(self, visit: Visit, files: Sequence[str] | None) -> Updates:
        """Files were dropped: they go into the graph's store, and from the disk."""
        wrong: list[str] = []
        visit.stack = None
        for file in map(Path, files or ()):
            data = await asyncio.to_thread(_taken, file)
            if data is None:
                wrong.append(f"{file.name}: it was not read; drop it again.")
                continue
            try:
                self._keep(visit, await asyncio.to_thread(self.store.put, data))
            except ValueError as error:
                what = _unread(error)
                with contextlib.suppress(ValueError):  # if it only lacks the frame
                    await asyncio.to_thread(self.store.put, {"image": data, "frame": 0})
                    visit.stack, what = (file.name, data), f"{what}; choose one"
                wrong.append(f"{file.name}: {what}.")
        return await self._pictures(visit, *wrong)

    async def put_frame(self, visit: Visit, frame: int | None) -> Updates:
        """A frame of the stack was chosen."""
        if visit.stack is None:
            return await self._pictures(visit)
        name, data = visit.stack
        try:
            self._keep(visit, await asyncio.to_thread(self.store.put, {"image": data, "frame": frame or 0}))
        except ValueError as error:
            return await self._pictures(visit, f"{name}: {error}.")
        return await self._pictures(visit)

    async def remove(self, visit: Visit, event: gr.EventData) -> Updates:
        """An image was removed from the case."""
        visit.images = [ref for ref in visit.images if ref != event._data.get("ref")]
        return await self._pictures(visit)

    def _keep(self, visit: Visit, ref: str) -> None:
        if ref not in visit.images:
            visit.images.append(ref)

    async def _pictures(self, visit: Visit, *wrong: str) -> Updates:
        return {
            self.visit: visit,
            self.drop: None,
            self.previews: await asyncio.to_thread(previews_html, visit.images, self.store),
            self.drop_notice: notice_html(*wrong),
            self.frames: gr.update(visible=visit.stack is not None),
        }

    # The consultation

    @followed
    def ask(self, visit: Visit, question: str, options: str, context: str, votes: str) -> Given:
        """The case is put to the graph."""
        given = {
            "question": question or "",
            "options": [line.strip() for line in (options or "").splitlines() if line.strip()],
            "images": visit.images,
            "context": (context or "").strip() or None,
        }
        try:
            case = Case.of(given)
        except ValueError as error:
            return {self.notice: notice_html(_told(error))}
        self._forget(visit)
        visit.thread, visit.chart = uuid.uuid4().hex, Chart(options=case.options)
        visit.context = self._context(votes)
        return case

    @followed
    def go_on(self, visit: Visit) -> Given:
        """The consultation goes on from where it failed."""
        return None

    @followed
    def approved(self, visit: Visit) -> Given:
        """The decision is released as it is."""
        return Command(resume={"action": "approve"})

    @followed
    def changed(self, visit: Visit, option: str | None, free: str, why: str) -> Given:
        """Another answer is released."""
        answer = option if visit.chart.options else (free or "").strip()
        if not answer:
            return {self.review_notice: notice_html("Say what the answer shall be.")}
        return Command(resume={"action": "change", "answer": answer, "reasoning": (why or "").strip()})

    @followed
    def heard(self, visit: Visit, specialty: str | None) -> Given:
        """One more specialist is heard, and the attending decides again."""
        if not specialty:
            return {self.review_notice: notice_html("Say which specialist shall be heard.")}
        return Command(resume={"action": "hear", "specialty": specialty})

    def cleared(self, visit: Visit) -> Updates:
        """Everything is as it was at first."""
        self._forget(visit)
        visit = Visit()
        return {
            **self._state(visit, running=False),
            self.drop: None,
            self.previews: "",
            self.drop_notice: "",
            self.frames: gr.update(visible=False),
            self.question: "",
            self.options: "",
            self.context: "",
            self.votes: AS_BUILT,
        }

    async def tried(self, visit: Visit) -> Updates:
        """An example is put into the form."""
        assert self.example is not None
        case = await asyncio.to_thread(self.example, self.store)
        updates, visit = self.cleared(visit), Visit(images=list(case["images"]))
        return {
            **updates,
            **await self._pictures(visit),
            self.question: case["question"],
            self.options: "\n".join(case["options"]),
        }

    async def follow(self, visit: Visit, given: Any) -> AsyncGenerator[Updates, None]:
        """Run the graph until it ends, fails or asks, and show what happens."""
        chart = visit.chart
        chart.begin()
        yield self._state(visit, running=True)
        thread = visit.thread
        config: RunnableConfig = {"configurable": {"thread_id": thread}}
        try:
            parts = self.graph.astream(given, config, stream_mode=STREAM, context=visit.context)
            async with contextlib.aclosing(parts):  # type: ignore[type-var]
                async for mode, part in parts:
                    chart.add(mode, part)
                    yield {self.chart: chart_html(chart), self.drawing: self._drawing(chart)}
            asked = [waiting.value for waiting in (await self.graph.aget_state(config)).interrupts]
            if asked and not _is_review(asked[0]):
                raise RuntimeError("a node asks for something that this page cannot ask for")
            chart.end(asked[0] if asked else None)
        except Exception as error:  # a model may raise anything
            chart.fail(f"The consultation failed. {_told(error)}")
        finally:
            if visit.thread != thread:  # cleared while it ran
                self._delete(thread)
        yield self._state(visit, running=False)

    def _context(self, votes: str) -> dict[str, Any] | None:
        """What this run changes of the graph, where it can be changed."""
        if not self.changeable:
            return None
        number = int(votes) if votes in ("1", "3", "5") else votes
        return {"review": True} | ({} if votes == AS_BUILT else {"votes": number})

    def _state(self, visit: Visit, running: bool) -> Updates:
        """The whole page but for the form."""
        chart, request = visit.chart, visit.chart.request
        choices = [option for option in chart.options if not (chart.decision and option == chart.decision["answer"])]
        answered = bool(chart.decision and chart.decision["answer"] is not None)
        return {
            self.visit: visit,
            self.notice: "",
            self.chart: chart_html(chart),
            self.drawing: self._drawing(chart),
            self.consult: gr.update(interactive=not running, value="Consulting …" if running else "Consult"),
            self.retry: gr.update(visible=chart.failure is not None and not running),
            self.review: gr.update(visible=request is not None and not running),
            self.review_notice: notice_html((request["error"] if request else "") or ""),
            self.approve: gr.update(value="Approve", variant="primary")
            if answered
            else gr.update(value="Release without an answer", variant="secondary"),
            self.another: gr.update(choices=choices, value=None, visible=bool(chart.options)),
            self.free: gr.update(value="", visible=not chart.options),
            self.why: "",
            self.specialty: gr.update(choices=request["specialties"] if request else [], value=None),
        }

    def _drawing(self, chart: Chart) -> str:
        return self.picture.svg(chart.at_work, chart.done)

    def _forget(self, visit: Visit) -> None:
        """Forget the consultation of a visit."""
        self._delete(visit.thread)
        visit.thread = None

    def _delete(self, thread: str | None) -> None:
        """Delete what only this process knows of. A checkpointer that lasts is its owner's record."""
        if thread and isinstance(self.graph.checkpointer, InMemorySaver):
            self.graph.checkpointer.delete_thread(thread)


def _taken(file: Path) -> bytes | None:
    """An upload's bytes; the file, and the folder that Gradio made for it, are gone."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.parent.rmdir()
    return data


def _is_review(asked: Any) -> bool:
    return isinstance(asked, Mapping) and {"decision", "actions", "specialties"} <= set(asked)


def _unread(error: ValueError) -> str:
    """What is wrong with an image, without what else a programmer could give."""
    return re.sub(r" \(\w+Error\)", "", str(error).partition("; ")[0])


def _told(error: Exception) -> str:
    """What to tell of an error."""
    if isinstance(error, ValidationError):
        said = "; ".join(_problem(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors())
    elif isinstance(error, ValueError):
        said = " ".join(str(error).split())
    else:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return said[:1].upper() + said[1:SHOWN]


def _problem(field: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message if field in message else f"{field}: {message}"
