"""The report in a real browser: Debian's Chromium, offline, with a thousand traces, hostile ones among them."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reported import (
    EVIL,
    HALF,
    a_consultation,
    figure,
    picture,
    result,
    told,
    write_evaluation,
    write_traced,
    write_training,
)

from rl.report.__main__ import main

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE, NARROW = ({"width": w, "height": h} for w, h in ((1280, 900), (390, 844), (360, 740)))
LONG = "pneumonoultramicroscopicsilicovolcanoconiosis" * 250
"""More than 10 kB without a space."""
HEARD = [("cyst", "cyst", "cyst"), ("cyst", "scar", "scar"), ("scar", "scar", "scar"), ("cyst", "cyst", "scar")]
SYSTEMS = {"base": "scar", "trained": "cyst"}
"""What the attending of each decides, whatever it hears."""
SPECIALTIES = ("Radiologist", "Surgeon")
SECONDS = 3.0
"""In which a page of a thousand traces opens, and less than which any filter takes, on a slow machine."""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """1,000 consultations: of four cases one is easy, two are medium, one is hard; each system's last is hostile."""
    folder = tmp_path_factory.mktemp("report") / "run"
    refs = [picture(folder, (400, 300), (i, 80, 160)) for i in range(250)]
    traces = {
        name: [
            a_consultation(
                f"case-{i}",
                HEARD[i % 4],
                decided,
                question=f"What does image {i} show?",
                images=[refs[i % 250]],
                referral={"specialty": SPECIALTIES[i % 2], "reasoning": "By its look."},
                confidence=0.2 * (1 + i % 5),
            )
            for i in range(499)
        ]
        for name, decided in SYSTEMS.items()
    }
    for name, decided in SYSTEMS.items():
        words = {
            "said": f"{EVIL} {LONG}",
            "question": f"{EVIL} {LONG}",
            "context": LONG,
            "options": [EVIL, LONG, "cyst"],
        }
        groups = {EVIL: LONG}
        traces[name].append(
            a_consultation(f"{EVIL.removesuffix(HALF)}-{LONG}", (EVIL, LONG, None), decided, groups=groups, **words)
        )
    write_traced(folder, {"clinic": traces})
    training = write_training(folder.parent / "training")
    return main([str(folder), str(training), "--out", str(folder.parent / "report.html")]).html


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: the report's page is not tested; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclasses.dataclass
class Reader:
    """Somebody who has the page open, offline."""

    page: Any
    asked: list[str]
    """Every address that was asked for."""
    said: list[str]
    """What the console said: errors of the script, and what the page's policy has refused."""

    def choose(self, **filters: str) -> int:
        """How many traces are left by these filters."""
        for name, value in filters.items():
            field = self.page.locator(f"#filter [name={name}]")
            field.fill(value) if name == "q" else field.select_option(value)
        return self.count()

    def count(self) -> int:
        return int(self.page.locator("#count").text_content().split(" of ")[0].replace(",", ""))

    def fits(self) -> bool:
        """Nothing is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture
def read(browser, report) -> Callable[..., Reader]:
    """Open the page; in the end nobody but the file was asked for anything, and nothing went wrong."""
    readers = []

    def make(viewport=DESKTOP, hash="", **how) -> Reader:
        context = browser.new_context(viewport=viewport, offline=True, accept_downloads=True, **how)
        reader = Reader(context.new_page(), [], [])
        reader.page.on("request", lambda request: reader.asked.append(request.url))
        reader.page.on("console", lambda message: reader.said.append(message.text))
        reader.page.on("pageerror", lambda error: reader.said.append(str(error)))
        reader.page.goto(report.as_uri() + hash)
        readers.append(reader)
        return reader

    yield make
    for reader in readers:
        assert {url.split("#")[0] for url in reader.asked if not url.startswith("data:")} == {report.as_uri()}
        assert reader.said == []
        assert reader.page.evaluate("window.harmed") is None
        reader.page.context.close()


def test_a_thousand_traces_open_and_are_filtered_quickly(read):
    start = time.monotonic()
    reader = read()
    assert reader.count() == 1000
    assert time.monotonic() - start < SECONDS
    assert reader.page.locator(".trace").count() == 50, "a page of them"
    spent = reader.page.evaluate(
        """() => {
            const form = document.getElementById('filter');
            const start = performance.now();
            for (const words of ['image 1', 'image 12', '', 'show']) {
                form.elements.q.value = words;
                form.dispatchEvent(new Event('input'));
                document.body.offsetHeight;
            }
            return (performance.now() - start) / 4;
        }"""
    )
    assert spent < 1000 * SECONDS / 10


def test_filters(read):
    reader = read()
    assert reader.choose(system="base") == 500
    assert reader.choose(outcome="wrong") == 500, "it always says scar"
    assert reader.choose(tier="easy") == 125
    assert reader.choose(flip="right to wrong") == 125
    assert reader.choose(flip="wrong to right") == 0
    assert reader.choose(system="trained") == 0
    assert reader.choose(outcome="", tier="") == 251, "1, 2, 5, 6 and so on, and the hostile one"
    assert reader.choose(flip="", specialty="Surgeon") == 249
    assert reader.choose(q="CASE-42") == 5, "421, 423 and so on; 42 itself is referred to the other"
    reader.page.get_by_role("button", name="Clear").click()
    reader.page.wait_for_function("document.getElementById('count').textContent.startsWith('1,000')")


def test_the_list_goes_on(read):
    reader = read()
    more = reader.page.get_by_role("button", name="Show 50 more of 950")
    more.focus()
    reader.page.keyboard.press("Enter")
    assert reader.page.locator(".trace").count() == 100
    place = "[...document.querySelectorAll('.trace > summary')].indexOf(document.activeElement)"
    assert reader.page.evaluate(place) == 50, "the keyboard goes on with the first new one"
    assert reader.choose(q="image 499 show") == 0
    assert reader.choose(q="image 498 show") == 2
    assert reader.page.locator("#more").is_hidden()


def test_the_address_keeps_the_filter(read):
    reader = read()
    reader.choose(tier="hard", outcome="wrong", q="image 2")
    kept = reader.page.evaluate("location.hash")
    assert kept == "#tier=hard&outcome=wrong&q=image+2"
    again = read(hash=kept)
    assert again.count() == reader.count() > 0
    assert again.page.locator("[name=tier]").input_value() == "hard"
    again.page.evaluate("location.hash = 'tier=easy'")
    again.page.wait_for_function("document.getElementById('count').textContent.startsWith('250 ')")
    assert read(hash="#traces").count() == read(hash="#tier=nonsense").count() == 1000


def test_going_to_a_part_of_the_page_leaves_the_traces_as_they_are(read):
    reader = read(hash="#tier=hard")
    reader.page.locator(".trace > summary").first.click()
    for part in ("Plots", "Traces"):
        reader.page.get_by_role("link", name=part).click()
        reader.page.wait_for_function(f"location.hash === '#{part.lower()}'")
    assert reader.page.locator(".trace[open] .body").count() == 1
    assert reader.page.locator("[name=tier]").input_value() == "hard"


def test_a_trace_with_the_keyboard_alone(read):
    reader = read(hash="#system=trained&q=case-2")
    trace = reader.page.locator(".trace", has_text="case-2 ·")
    trace.locator("summary").first.focus()
    reader.page.keyboard.press("Enter")
    trace.locator(".body").wait_for()
    said = trace.inner_text()
    for words in ("What does image 2 show?", "B. cyst — the key, decided", "Referral", "Radiologist ✓ right"):
        assert words in said
    assert "Radiologist 1: scar ✗ wrong" in said
    assert "flipped wrong to right against the majority" in said
    assert "Calls: 5, 160 tokens read, 35 written" in said
    assert "triage · clinic:base · 32 + 7 tokens · 0.25 s" in said
    image = trace.locator("img")
    assert image.get_attribute("alt") == "Image 1 of 1 of case case-2"
    assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth }") == 320
    trace.locator(".call summary").first.focus()
    reader.page.keyboard.press("Space")
    assert trace.locator("pre").first.inner_text() == "I see it."


def test_who_was_not_asked_is_nobody_and_not_wrong(browser, tmp_path):
    nobody, unread, none = (
        a_consultation(name, referral=referral)
        for name, referral in (
            ("nobody", {"specialty": None, "reasoning": "Too plain."}),
            ("unread", {"specialty": None, "reasoning": "Hm."}),
            ("none", None),
        )
    )
    for trace in (nobody, none):
        trace.calls = [call for call in trace.calls if call.node != "triage"]
    folder = write_traced(tmp_path, {"clinic": {"a": [nobody, unread, none]}})
    page = browser.new_page(offline=True)
    page.goto(main([str(folder)]).html.as_uri())
    assert page.locator("[name=specialty] option").all_text_contents() == ["all", "nobody", "unread"]
    said = {}
    for trace in page.locator(".trace").all():
        trace.locator("summary").first.click()
        trace.locator(".body").wait_for()
        said[trace.locator(".facts .said").first.text_content()] = trace.locator(".body").inner_text()
    page.close()
    assert "Referral\n\nnobody\n\nToo plain." in said["nobody"]
    assert "unreadable" not in said["nobody"]
    assert "Referral\n\nunreadable ✗ wrong" in said["unread"]
    assert "Referral" not in said["none"]


def test_hostile_text_stays_text(read):
    reader = read(PHONE)
    assert reader.choose(q="onerror") == 2
    for trace in reader.page.locator(".trace > summary").all():
        trace.click()
    reader.page.locator(".trace:last-child .body").wait_for()
    for call in reader.page.locator(".call > summary").all():
        call.click()
    said = reader.page.locator("#list").text_content()
    assert said.count(EVIL.removesuffix(HALF)) > 20
    turned = "[...document.querySelectorAll('#list *')].filter((element) => [...element.childNodes].some("
    turned += "(node) => node.nodeType === 3 && node.data.includes('\u202e')) && !element.closest('[dir=auto]')).length"
    assert reader.page.evaluate(turned) == 0, "writing that is turned stays by itself"
    assert reader.page.locator("#list img, #list script, #list iframe").count() == 0
    assert reader.page.locator("script").count() == 2
    assert reader.fits(), "a line of 10 kB is broken"
    reader.page.wait_for_timeout(200)  # whatever could harm would have done so


def test_every_column_is_seen_on_a_desktop(browser, tmp_path):
    """All that a table can hold: whom to ask alone, what was withheld, and seven digits of tokens."""
    one = figure(0.123, 0.1, 0.2)
    cost = {"calls": 12.0, "input_tokens": 12345.0, "output_tokens": 12345.0, "seconds": 123.4, "dollars": 0.1234}
    full = result(abstained=one, best_specialist={"doctor": "2", **one}, cost=cost, against_reference=told(-0.1, 0.5))
    folder = write_evaluation(tmp_path, {"clinic": {"mmedagent": result(), "self-consistency": full}})
    page = browser.new_page(offline=True, viewport=DESKTOP)
    page.goto(main([str(folder)]).html.as_uri())
    hidden = "[...document.querySelectorAll('.sheet')].filter((sheet) => sheet.scrollWidth > sheet.clientWidth).length"
    assert page.evaluate(hidden) == 0
    page.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, NARROW], ids=["desktop", "phone", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(read, viewport, scheme):
    reader = read(viewport, color_scheme=scheme)
    for trace in reader.page.locator(".trace > summary").all()[:5]:
        trace.click()
    assert reader.fits()
    cut = """() => [...document.querySelectorAll('body *')].filter((element) => {
        const box = element.getBoundingClientRect();
        const seen = !element.closest('svg, .hidden, thead, .ask') && box.width;
        return seen && (box.left < -0.5 || box.right > innerWidth + 0.5);
    }).map((element) => element.outerHTML.slice(0, 120))"""
    assert reader.page.evaluate(cut) == []


def test_plots_are_seen_and_said(read):
    reader = read(color_scheme="dark")
    plots = reader.page.locator("figure svg")
    assert plots.count() == 4 + 1 + 3  # without the traces' label, there would be no triage
    for plot in plots.all():
        assert plot.bounding_box()["width"] > 250
        assert plot.get_attribute("role") == "img"
    color = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert reader.page.evaluate(color) == reader.page.evaluate("getComputedStyle(document.body).color")


def test_the_policy_holds(read):
    """What got into the page all the same would still load nothing and run nothing."""
    reader = read()
    refused = []
    reader.page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    reader.page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.harmed = 1';
            const image = document.createElement('img');
            image.src = 'https://example.org/leak.png';
            document.body.append(script, image);
            return fetch('https://example.org/leak').catch(() => null);
        }"""
    )
    reader.page.wait_for_timeout(200)
    assert reader.page.evaluate("window.harmed") is None
    assert len(reader.said) >= 3
    assert all("Content Security Policy" in said for said in reader.said), reader.said
    assert {url for url in reader.asked if url.startswith("http")} == {url for url, _ in refused}
    assert {why for _, why in refused} == {"csp"}, "not for want of a network"
    reader.said.clear()
    reader.asked[:] = [url for url in reader.asked if url.startswith("file:")]


def test_the_table_can_be_saved_from_the_page(read, report):
    reader = read()
    for name in ("report.csv", "report.tex"):
        with reader.page.expect_download() as download:
            reader.page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename == name
        assert Path(download.value.path()).read_text() == report.with_name(name).read_text()
    reader.asked[:] = [report.as_uri()]
