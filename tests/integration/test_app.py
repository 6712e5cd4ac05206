"""The consulting room in a real browser: Debian's Chromium, which speaks to the room's server and to nobody else."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image

from mmedagent_graph import Context, ImageStore, build_graph
from mmedagent_graph.app.chart import Chart
from mmedagent_graph.app.picture import Picture
from mmedagent_graph.app.render import chart_html, notice_html, previews_html, text
from mmedagent_graph.review import ReviewRequest

pytest.importorskip("gradio", reason="the consulting room is not installed: pip install 'mmedagent-graph[ui]'")
pytestmark = pytest.mark.xdist_group("app")  # with `--dist loadgroup` one worker runs these, on one pair of servers
CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EVIL = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>${window.harmed=1}{{window.harmed=1}}\''
PATIENT = "Jane Roe 1970-01-01"

# Pure rendering


def opinion(doctor: int, answer: str | None, error: str | None = None, reasoning: str = "") -> dict[str, Any]:
    said = {"specialty": "Surgeon", "doctor": doctor, "answer": answer, "index": None}
    return {
        "event": "opinion",
        "doctor": doctor,
        "doctors": 3,
        "opinion": {**said, "reasoning": reasoning, "error": error},
    }


def vote(number: int, answer: str | None, refer: str | None = None, error: str | None = None) -> dict[str, Any]:
    said = {"vote": number, "answer": answer, "index": None, "reasoning": "", "refer": refer, "error": error}
    return {"event": "vote", "vote": said}


def referral(specialty: str | None, by: str = "triage", reasoning: str = "") -> dict[str, Any]:
    return {"event": "referral", "by": by, "referral": {"specialty": specialty, "reasoning": reasoning}}


def decision(answer: str | None, **more: Any) -> dict[str, Any]:
    decided = {"answer": answer, "index": None, "reasoning": "", "agreement": 2 / 3, "entropy": 0.918, "opinions": 3}
    decided |= {"votes": 1, "tally": [], "confidence": None, "abstained": False, "review": None}
    return {"event": "decision", "decision": {**decided, **more}}


def task(id: str, name: str, **given: Any) -> dict[str, Any]:
    return {"id": id, "name": name, "input": given, "triggers": ()}


def ended(id: str, name: str, interrupts: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"id": id, "name": name, "error": None, "result": {}, "interrupts": interrupts}


def charted(*parts: dict[str, Any]) -> Chart:
    chart = Chart(options=["yes", "no"])
    for part in parts:
        chart.add("custom" if "event" in part else "tasks", part)
    return chart


def shown(*parts: dict[str, Any]) -> str:
    """The words of the chart, without the markup."""
    return " ".join(re.sub(r"<[^>]+>", " ", chart_html(charted(*parts))).split())


def test_a_chart_tells_who_is_at_work_and_who_has_answered():
    doctors = [task(f"s{i}", "specialist", doctor=i) for i in (1, 2, 3)]
    chart = charted(referral("Surgeon"), *doctors, opinion(2, "no"), ended("s2", "specialist"))
    assert chart.at_work == {"specialist": 2}
    assert [bool(heard) for heard in chart.hearings[0].doctors.values()] == [False, True, False]
    assert "1 of 3" in chart_html(chart)


def test_a_chart_leaves_what_is_not_the_consultations():
    assert charted({"event": "of my own"}).hearings == []
    chart = Chart()
    for said in ("a text", None, 3, {"progress": 0.5}):
        chart.add("custom", said)
    assert chart == Chart()


def test_one_more_specialist_begins_the_votes_anew():
    chart = charted(
        referral("Surgeon"), opinion(1, "no"), vote(1, "no"), decision("no"), referral("Oncologist", "review")
    )
    assert (chart.votes, chart.decision) == ({}, None)
    chart.add("custom", opinion(2, "yes"))
    assert [list(hearing.doctors) for hearing in chart.hearings] == [[1], [2]]
    assert "You ask for one more" in chart_html(chart)


def test_a_node_that_waits_for_a_reviewer_is_still_at_work():
    assert charted(task("r", "review"), ended("r", "review", interrupts=({},))).at_work == {"review": 1}
    assert not charted(task("r", "review"), ended("r", "review")).at_work


def test_a_failure_leaves_nobody_at_work():
    chart = charted(referral("Surgeon"), task("s1", "specialist", doctor=1))
    chart.fail("It broke.")
    assert not chart.at_work
    assert "Looking" not in chart_html(chart)
    assert "It broke." in chart_html(chart)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([referral(None)], "No specialty could be read"),
        ([referral("Surgeon", "attending")], "The attending asks for one more Surgeon"),
        ([opinion(1, None, error="TimeoutError: 3 s")], "Doctor 1 No opinion Why TimeoutError: 3 s"),
        ([opinion(1, None)], "Doctor 1 Unreadable"),
        ([opinion(1, "No.", reasoning="Look."), decision("no")], "Doctor 1 No. Reasoning Look. agrees"),
        ([opinion(1, "yes"), decision("no")], "Doctor 1 yes differs"),
        ([vote(1, "no"), vote(2, "No"), vote(3, None)], "3 of 3 no 2 unreadable 1"),
        ([vote(1, None, refer="Surgeon"), vote(2, None, error="broke")], "refer to Surgeon 1 failed 1"),
        ([task("a", "attending")], "Attending Weighing the opinions"),
        ([decision("no")], "Decision no Agreement 2 of 3 specialists agree Opinions divided entropy 0.92 bits"),
        ([decision("no", confidence=0.8, votes=5)], "Confidence 80% 4 of 5 votes"),
        ([decision("no", entropy=0.0, agreement=1.0)], "Opinions unanimous entropy 0.00 bits"),
        ([decision("no", entropy=1.585)], "Opinions all different"),
        ([decision("no", entropy=1.0, opinions=2)], "Opinions divided"),
        ([decision("no", entropy=0.0, opinions=1)], "Opinions one heard"),
        ([decision("no", entropy=None, agreement=None, opinions=0)], "Opinions unheard"),
        ([decision("no", review="changed")], "Decision changed by you no"),
        ([decision(None)], "No decision The answer could not be read: a human must decide."),
        (
            [decision(None, abstained=True, votes=5, tally=[{"answer": "no", "index": 1, "votes": 2}])],
            "No decision The majority is too weak: a human must decide. Most voted for: no, 2 of 5.",
        ),
    ],
)
def test_what_is_shown(parts, words):
    assert words in shown(*parts)


def test_whatever_is_said_is_text():
    said = chart_html(
        charted(
            referral(EVIL, reasoning=EVIL),
            opinion(1, EVIL, reasoning=EVIL),
            opinion(2, None, error=EVIL),
            vote(1, EVIL),
            vote(2, None, refer=EVIL),
            decision(EVIL, reasoning=EVIL, tally=[{"answer": EVIL, "index": None, "votes": 1}]),
        )
    )
    chart = Chart()
    chart.fail(EVIL)
    for html in (said, chart_html(chart), notice_html(EVIL)):
        assert text(EVIL) in html
        assert not re.search(r"<(img|script)", html)
        assert EVIL not in html


def test_controls_and_turned_writing_are_left_out():
    assert text("a\x00b\u202ec\x1b[31m") == "abc[31m"


@pytest.mark.parametrize("settings", [{}, {"votes": 3}, {"context_schema": Context}], ids=["plain", "votes", "context"])
def test_the_picture_has_every_node_and_way_and_nothing_meets(settings):
    graph = build_graph(triage=str, specialists=str, attending=str, **settings).get_graph()
    picture = Picture(graph)
    svg = picture.svg({"specialist": 3}, {"triage"})
    assert set(re.findall(r'data-node="(\w+)"', svg)) == set(graph.nodes) - {"__start__", "__end__"}
    assert svg.count('class="way') == len(picture.ways)
    drawn = {(way.source, way.target) for way in picture.ways}
    drawn |= {(way.target, way.source) for way in picture.ways if way.both}
    assert drawn == {(edge.source, edge.target) for edge in graph.edges}
    assert len(set(picture.at.values())) == len(graph.nodes)
    assert 'class="node working" data-node="specialist"' in svg
    assert 'class="node done" data-node="triage"' in svg
    assert "×3" in svg


def test_previews_are_pngs_in_the_page(tmp_path):
    store = ImageStore(tmp_path)
    buffer = io.BytesIO()
    Image.new("I;16", (900, 300), 40_000).save(buffer, "TIFF")
    html = previews_html([store.put(buffer.getvalue())], store)
    assert re.findall(r'src="([^,]+),', html) == ["data:image/png;base64"]
    assert previews_html([], store) == ""


# The page without a browser


@pytest.fixture(scope="module")
def room():
    """Builds rooms, and consults in them."""
    from mmedagent_graph.app.room import Room, Visit

    nodes = {"triage": lambda case: {"specialty": "Surgeon"}, "specialists": lambda case: {"answer": "no"}}
    nodes["attending"] = lambda case: {"answer": "yes"}

    def build(**settings: Any):
        return Room(build_graph(**{**nodes, "checkpointer": InMemorySaver(), **settings}), None)

    async def consult(room: Any, visit: Any) -> list[Any]:
        return [updates async for updates in room.ask(visit, "Is it?", "yes\nno", "", "3")]

    build.consult, build.visit = consult, Visit
    return build


async def test_a_graph_with_neither_review_nor_context_shows_its_decision(room):
    plain, visit = room(), room.visit()
    await room.consult(plain, visit)
    assert not plain.votes.visible
    assert visit.chart.decision["answer"] == "yes"
    assert visit.chart.request is None


async def test_a_graph_that_was_built_with_review_is_reviewed(room):
    reviewed, visit = room(review=True), room.visit()
    await room.consult(reviewed, visit)
    assert set(visit.chart.request) == set(ReviewRequest.__annotations__)
    [updates async for updates in reviewed.approved(visit)]
    assert visit.chart.decision["review"] == "approved"


async def test_votes_of_the_page_go_before_the_graphs(room):
    changeable, visit = room(votes=5, context_schema=Context), room.visit()
    await room.consult(changeable, visit)
    assert visit.chart.decision["votes"] == 3


async def test_a_consultation_is_forgotten_with_the_next_one(room):
    again, visit = room(), room.visit()
    await room.consult(again, visit)
    first = visit.thread
    await room.consult(again, visit)
    assert list(again.graph.checkpointer.storage) == [visit.thread] != [first]
    again.cleared(visit)
    assert not again.graph.checkpointer.storage


async def test_what_is_cleared_while_it_runs_is_forgotten(room):
    stopped, visit = room(), room.visit()
    running = stopped.ask(visit, "Is it?", "yes\nno", "", "3")
    while not visit.chart.hearings:
        await anext(running)
    stopped.cleared(visit)
    await running.aclose()
    assert not stopped.graph.checkpointer.storage


async def test_a_node_of_ones_own_that_asks_is_told_so(room):
    from langgraph.types import interrupt

    asking, visit = room(attending=lambda case: interrupt("Are you sure?")), room.visit()
    await room.consult(asking, visit)
    assert "this page cannot ask" in visit.chart.failure


def test_a_graph_without_a_checkpointer_is_refused():
    from mmedagent_graph.app.room import build_app

    with pytest.raises(ValueError, match="checkpointer"):
        build_app(build_graph(triage=str, specialists=str, attending=str))


def test_the_command_line_says_what_is_wrong(capsys):
    from mmedagent_graph.app.__main__ import main

    assert main(["--triage", "nobody"]) == 2
    assert "error: triage: model: 'nobody' is not of the form 'provider:model'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--votes", "0"])


# The page in a browser (last, for no `async` test can run in a thread where Playwright's loop does)


AUDIT = """
import sys

def heard(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] != "127.0.0.1":
        print(arguments[1], file=open({spoken!r}, "a"))
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "127.0.0.1", "localhost"):
        print(arguments[0], file=open({spoken!r}, "a"))

sys.addaudithook(heard)
"""
"""Keeps whom a server speaks to, or asks the name of."""


@dataclasses.dataclass
class Server:
    """A room's server, all of whose temporary files lie in `tmp`."""

    process: subprocess.Popen[bytes]
    port: int
    tmp: Path
    log: Path
    folder: Path
    """Of the cases that the gated room is told of."""
    spoken: Path
    """Whom it spoke to, line by line; not there if to nobody but this machine."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if "is open at" in self.log.read_text():
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def say(self, case: str, **said: Any) -> None:
        """Let somebody answer: `attending_1={"answer": "no"}`, or fail: `doctor_2="broken"`."""
        (self.folder / case).mkdir(exist_ok=True)
        for who, answer in said.items():
            file = self.folder / case / who.replace("_", "-")
            part = file.with_suffix(".part")
            part.write_text(f"!{answer}" if isinstance(answer, str) else json.dumps(answer))
            part.replace(file)

    def files(self) -> list[Path]:
        return [path for path in self.tmp.rglob("*") if path.is_file() and path.stat().st_size]


def _open(tmp: Path, command: list[str]) -> Server:
    for name in ("tmp", "cases"):
        (tmp / name).mkdir()
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    spoken = tmp / "spoken"
    (tmp / "sitecustomize.py").write_text(AUDIT.format(spoken=str(spoken)))
    arguments = [part.format(port=port, cases=tmp / "cases") for part in command]
    with (tmp / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(tmp / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp)},
        )
    return Server(process, port, tmp / "tmp", tmp / "log", tmp / "cases", spoken)


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[dict[str, Server]]:
    """Both rooms, started side by side. Closed, they must have left nothing, and spoken to nobody else."""
    commands = {
        "clinic": ["mmedagent_graph.app", "--port", "{port}"],
        "gated": ["tests.integration.gated_room", "{port}", "{cases}"],
    }
    opened = {name: _open(tmp_path_factory.mktemp(name), command) for name, command in commands.items()}
    try:
        yield opened
        for server, number in zip(opened.values(), (signal.SIGTERM, signal.SIGINT), strict=True):
            server.wait()
            server.process.send_signal(number)
        for server in opened.values():
            server.process.wait(60)
            assert list(server.tmp.iterdir()) == []
            assert not server.spoken.exists(), server.spoken.read_text()
    finally:
        for server in opened.values():
            server.process.kill()
            server.process.wait()


@pytest.fixture
def clinic(servers) -> Server:
    servers["clinic"].wait()
    return servers["clinic"]


@pytest.fixture
def gated(servers) -> Server:
    servers["gated"].wait()
    return servers["gated"]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: the consulting room is not tested; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_context()  # one for all, so that Gradio's scripts are read once
        browser.close()


class Desk:
    """A browser session at a room."""

    def __init__(self, context: Any, server: Server, viewport: dict[str, int], scheme: str) -> None:
        self.server = server
        self.page = context.new_page()
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        self.page.set_default_timeout(60_000)
        self.outside: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", self._requested)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("response", lambda told: self.wrong.append(f"{told.status} {told.url}") if not told.ok else None)
        self.page.goto(server.url)
        self.see("#consult:enabled")

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((f"{self.server.url}/", "data:", "blob:")):
            self.outside.append(request.url)

    def see(self, selector: str, state: str = "visible") -> Any:
        return self.page.wait_for_selector(selector, state=state)

    def reviews(self) -> None:
        """Wait until the page asks for the review with all its parts: the browser shows one after the other."""
        self.see("#review")
        self.see(".decision .state:has-text('awaits your review')")

    def drop(self, *files: tuple[str, bytes]) -> None:
        given = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
        self.page.set_input_files("#drop input[type=file]", given)

    def ask(self, question: str, *options: str, votes: str | None = None) -> None:
        self.page.fill("#question textarea", question)
        self.page.fill("#options textarea", "\n".join(options))
        if votes:
            self.page.click("#more button")
            self.page.click(f"#votes label:has-text('{votes}')")
        self.page.click("#consult")

    def choose(self, dropdown: str, option: str) -> None:
        self.page.click(f"{dropdown} input")
        self.page.click(f"[role=option]:has-text('{option}')")

    def text(self, selector: str) -> str:
        return " ".join(self.page.inner_text(selector).split())

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def sit(browser, gated) -> Iterator[Any]:
    """Opens sessions at the gated room, which at the end must have spoken to nobody else and logged nothing."""
    desks: list[Desk] = []

    def open(viewport: dict[str, int] = DESKTOP, server: Server = gated, scheme: str = "light") -> Desk:
        desks.append(Desk(browser, server, viewport, scheme))
        return desks[-1]

    yield open
    for desk in desks:
        assert desk.outside == []
        assert desk.wrong == []
        assert desk.page.evaluate("window.harmed") is None
        assert len(gated.log.read_text().splitlines()) == 1, gated.log.read_text()
        desk.page.close()


def png(colour: str = "white", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def tiff(*colours: str) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.new("RGB", (40, 30), colour) for colour in colours)
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


YES, NO = {"answer": "yes"}, {"answer": "no"}
ALL = {f"doctor_{i}": YES for i in (1, 2, 3)}


def test_the_clinics_example_from_the_button_to_approval(sit, clinic):
    desk = sit(server=clinic)
    assert "no medical device" in desk.text("#disclaimer")
    desk.page.click("#example")
    desk.see(".previews img")
    desk.page.click("#consult")
    desk.reviews()
    assert desk.page.locator(".doctor.answered").count() == 3
    answer = desk.text(".decision .answer")
    assert answer in desk.page.input_value("#options textarea").splitlines()
    assert desk.text(".decision .state") == "awaits your review"
    desk.see('.node.working[data-node="review"]')
    desk.page.click("#approve")
    desk.see(".decision .state:has-text('approved by you')")
    assert desk.text(".decision .answer") == answer
    desk.see("#review", "hidden")


def test_a_consultation_is_seen_as_it_happens(sit, gated):
    desk, case = sit(), "as it happens"
    desk.drop((f"{PATIENT}.png", png()))
    desk.see(".previews img")
    desk.ask(case, "yes", "no", votes="3")
    desk.see('.node.working[data-node="triage"]')
    gated.say(case, triage={"specialty": "Surgeon", "reasoning": "There is a knife."})
    desk.see(".doctor.pending >> nth=2")
    assert desk.text(".referral") == "Surgeon"
    assert "×3" in desk.page.text_content('.node.working[data-node="specialist"]')
    gated.say(case, doctor_2={"answer": "no", "reasoning": "I see none."})
    desk.see(".doctor.answered")
    assert desk.text(".doctor.answered") == "Doctor 2 no Reasoning"
    assert desk.page.locator(".doctor.pending").count() == 2
    desk.page.click(".doctor summary")
    assert desk.text(".doctor.answered") == "Doctor 2 no Reasoning I see none."
    gated.say(case, doctor_1="the line is dead", doctor_3=YES)
    desk.see(".doctor.failed")
    gated.say(case, attending_1=YES, attending_3=NO)
    desk.see(".bar:has-text('no')")
    desk.see(".bar:has-text('yes')")
    assert desk.page.locator(".decision").count() == 0
    gated.say(case, attending_2=YES)
    desk.reviews()
    assert desk.text(".decision .answer") == "yes"
    assert "67% 2 of 3 votes" in desk.text(".decision dl")
    assert "1 of 2 specialists agree" in desk.text(".decision dl")
    assert "I see none. differs" in desk.text(".doctor >> nth=1"), "what was unfolded is folded"
    assert "the line is dead" not in desk.text(".chart")
    desk.page.click(".doctor.failed summary")
    assert "RuntimeError: the line is dead" in desk.text(".doctor.failed")


def test_a_reviewer_changes_the_answer(sit, gated):
    desk, case = sit(), "to be changed"
    gated.say(case, triage={"specialty": "Surgeon"}, attending_1=YES, **ALL)
    desk.ask(case, "yes", "no")
    desk.reviews()
    desk.page.click("#change")
    desk.see("#review .notice:has-text('Say what the answer shall be')")
    desk.choose("#another", "no")
    desk.page.fill("#why textarea, #why input", "The film is upside down.")
    desk.page.click("#change")
    desk.see(".decision .state:has-text('changed by you')")
    assert desk.text(".decision .answer") == "no"
    desk.page.click(".decision summary")
    assert "The film is upside down." in desk.text(".decision")
    assert "0 of 3" in desk.text(".decision dl")


def test_a_free_answer_is_changed_in_free_text(sit, gated):
    desk, case = sit(), "in free text"
    gated.say(case, triage={"specialty": "Surgeon"}, attending_1=YES, **ALL)
    desk.ask(case)
    desk.reviews()
    assert not desk.page.is_visible("#another")
    desk.page.fill("#free textarea, #free input", "a foreign body")
    desk.page.click("#change")
    desk.see(".decision .state:has-text('changed by you')")
    assert desk.text(".decision .answer") == "a foreign body"


def test_a_reviewer_hears_another_specialist(sit, gated):
    desk, case = sit(), "to be heard"
    gated.say(case, triage={"specialty": "Surgeon"}, attending_1=YES, **ALL)
    desk.ask(case, "yes", "no")
    desk.reviews()
    desk.page.click("#hear")
    desk.see("#review .notice:has-text('Say which specialist')")
    desk.choose("#specialty", "Oncologist")
    (gated.folder / case / "attending-1").unlink()
    desk.page.click("#hear")
    desk.see(".doctor.pending:has-text('Doctor 4')")
    assert not desk.page.is_visible("#review")
    assert desk.page.locator(".decision").count() == 0
    gated.say(case, doctor_4=NO, attending_1=NO)
    desk.reviews()
    assert desk.text(".decision .answer") == "no"
    assert "You ask for one more Oncologist Specialists Doctor 4 no agrees" in desk.text(".chart")


def test_what_cannot_be_asked_is_said(sit):
    desk = sit()
    desk.drop((f"{PATIENT}.txt", b"no image at all"), ("scan.png", png()))
    desk.see(".previews img")
    desk.see(f".notice:has-text('{PATIENT}.txt: not a readable image')")
    assert desk.page.locator(".previews img").count() == 1
    desk.page.click("#consult")
    desk.see("#notice .notice:has-text('Question is empty')")
    desk.ask("Is it?", "yes")
    desk.see("#notice .notice:has-text('Options has one entry')")
    desk.page.click(".previews button")
    desk.see(".previews img", "detached")


def test_of_a_file_with_frames_one_is_chosen(sit):
    desk = sit()
    desk.drop(("stack.tiff", tiff("red", "lime", "blue")))
    desk.see(".notice:has-text('stack.tiff: the file has 3 frames; choose one.')")
    for frame, problem in (("7", "no such frame"), ("1", None)):
        desk.page.fill("#frames input", frame)
        desk.page.click("#frames button:has-text('Add this frame')")
        if problem:
            desk.see(f".notice:has-text('{problem}')")
    desk.see(".previews img")
    colour = """() => {
        const image = document.querySelector('.previews img'), canvas = document.createElement('canvas');
        const drawing = canvas.getContext('2d');
        drawing.drawImage(image, 0, 0);
        return [...drawing.getImageData(1, 1, 1, 1).data].slice(0, 3);
    }"""
    assert desk.page.evaluate(colour) == [0, 255, 0]


def test_nobody_can_put_markup_into_the_page(sit, gated):
    desk, case = sit(), "is it evil"
    said = {"answer": EVIL, "reasoning": EVIL}
    gated.say(case, triage={"specialty": "Surgeon", "reasoning": EVIL}, doctor_1=said, doctor_2=EVIL, doctor_3=said)
    gated.say(case, attending_1=said)
    desk.ask(case, EVIL, "harmless")
    desk.reviews()
    for summary in desk.page.query_selector_all(".chart summary"):
        summary.click()
    assert desk.page.inner_text(".decision .answer") == EVIL
    assert desk.page.inner_text(".doctor.answered .said") == EVIL
    assert desk.page.locator(".chart img, .chart script").count() == 0
    desk.page.click("#another input")
    desk.see("[role=option]:has-text('harmless')")


def test_a_failure_is_said_and_can_be_tried_again(sit, gated):
    desk, case = sit(), "is it broken"
    gated.say(case, triage={"specialty": "Surgeon"}, attending_1="503 try later", **ALL)
    desk.ask(case, "yes", "no")
    desk.see(".chart .notice:has-text('The consultation failed. RuntimeError: 503 try later')")
    assert "Traceback" not in desk.text("body")
    assert desk.page.locator(".node.working").count() == 0
    gated.say(case, attending_1=NO)
    desk.page.click("#retry")
    desk.reviews()
    assert desk.text(".decision .answer") == "no"
    assert not desk.page.is_visible("#retry")


def test_two_sessions_at_once_do_not_mix(sit, gated):
    one, other = sit(), sit()
    for desk, case, specialty in ((one, "one", "Surgeon"), (other, "other", "Radiologist")):
        desk.drop(("scan.png", png()))
        desk.see(".previews img")
        desk.ask(case, "yes", "no")
        gated.say(case, triage={"specialty": specialty})
    for desk in (one, other):
        desk.see(".doctor.pending >> nth=2")
    gated.say("other", doctor_1=NO, doctor_2=NO, doctor_3=NO, attending_1=NO)
    other.reviews()
    assert one.page.locator(".doctor.pending").count() == 3
    gated.say("one", attending_1=YES, **ALL)
    one.reviews()
    other.page.click("#approve")
    other.see(".decision .state:has-text('approved')")
    assert (one.text(".referral"), one.text(".decision .answer")) == ("Surgeon", "yes")
    assert (other.text(".referral"), other.text(".decision .answer")) == ("Radiologist", "no")
    assert one.text(".decision .state") == "awaits your review"


def test_what_runs_can_be_cleared(sit, gated):
    desk = sit()
    desk.drop(("scan.png", png()))
    desk.see(".previews img")
    desk.ask("never answered", "yes", "no")
    desk.see('.node.working[data-node="triage"]')
    desk.page.click("#clear")
    desk.see(".empty")
    desk.see("#consult:enabled")
    assert desk.page.input_value("#question textarea") == ""
    desk.see(".previews img", "detached")
    gated.say("asked after", triage={"specialty": "Surgeon"}, attending_1=YES, **ALL)
    gated.say("never answered", triage={"specialty": "Radiologist"})
    desk.ask("asked after", "yes", "no")
    desk.reviews()
    assert desk.text(".referral") == "Surgeon"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(sit, gated, scheme):
    desk, case = sit(PHONE, scheme=scheme), f"on a phone {scheme}"
    long = "pneumonoultramicroscopicsilicovolcanoconiosis" * 3
    gated.say(case, triage={"specialty": "Ophthalmologist", "reasoning": long}, doctor_1={"answer": long})
    gated.say(case, doctor_2=long, doctor_3=NO, **{f"attending_{i}": {"answer": long} for i in range(1, 6)})
    assert desk.fits()
    desk.drop(("wide.png", png(size=(3000, 200))), ("scan.png", png()), (f"{long}.txt", b"no image"))
    desk.see(".previews img")
    assert desk.fits()
    desk.ask(case, long, "no", votes="5")
    desk.reviews()
    for summary in desk.page.query_selector_all(".chart summary"):
        summary.click()
    assert desk.fits()
    assert desk.page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    cut = """() => [...document.querySelectorAll('.chart *, #review *, #left button, .picture *')].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width && (box.left < 0 || box.right > innerWidth + 0.5);
    }).map((element) => element.outerHTML.slice(0, 120))"""
    assert desk.page.evaluate(cut) == []


def test_a_keyboard_is_enough(sit, gated):
    desk, case = sit(), "with a keyboard"
    gated.say(case, triage={"specialty": "Surgeon", "reasoning": "I know."}, attending_1=YES, **ALL)
    desk.page.get_by_label("Question").focus()
    desk.page.keyboard.type(case)
    for _ in range(10):
        desk.page.keyboard.press("Tab")
        if desk.page.evaluate("document.activeElement.id") == "consult":
            break
    desk.page.keyboard.press("Enter")
    desk.reviews()
    desk.page.focus(".chart summary")
    desk.page.keyboard.press("Enter")
    assert "I know." in desk.text(".chart")
    desk.page.focus("#approve")
    desk.page.keyboard.press("Enter")
    desk.see(".decision .state:has-text('approved by you')")


def test_the_door(gated):
    url = gated.url
    page = httpx.get(url)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403, "DNS rebinding"
    assert httpx.get(url, headers={"host": "localhost:8000"}).status_code == 200, "through a tunnel"
    files = {"files": ("a.png", png())}
    evil = {"origin": "http://evil.example"}
    assert httpx.post(f"{url}/gradio_api/upload", files=files, headers=evil).status_code == 403
    assert httpx.post(f"{url}/gradio_api/queue/join", json={}, headers={"origin": "null"}).status_code == 403
    neighbour = {"origin": "http://127.0.0.1:3000"}
    assert httpx.post(f"{url}/gradio_api/queue/join", json={}, headers=neighbour).status_code == 403
    for path in (
        "file=/etc/passwd",
        "info",
        "openapi.json",
        "proxy=https://a.hf.space",
        "vibe-code",
        "runs",
        "call/ask",
    ):
        assert httpx.get(f"{url}/gradio_api/{path}").status_code == 404, path
    for path in ("/monitoring", "/docs", "/openapi.json", "/gradio_api/%2e%2e/monitoring"):
        assert httpx.get(f"{url}{path}").status_code == 404, path
    with contextlib.closing(socket.socket()) as sock:
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            assert sock.connect_ex((outside, gated.port)), "open to others than this machine"


def test_no_upload_outlives_its_way_into_the_store(sit, gated):
    desk = sit()
    desk.drop((f"{PATIENT}.png", png("red")), (f"{PATIENT}.txt", b"no image"))
    desk.see(".previews img")
    assert gated.files()
    assert all(path.parent.name.startswith("mmedagent-images-") for path in gated.files())
    assert not [path for path in gated.tmp.rglob("*") if PATIENT.split()[0] in path.name]
