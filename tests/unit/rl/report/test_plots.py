"""What is drawn, and the SVG that it becomes."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import EVIL, HALF, figure, result, write_evaluation, write_training
from strategies import quiet

from rl.report.plots import (
    bins,
    confusions,
    referrals,
    reliability,
    risks,
    shelves,
    style,
    tiers,
    training_shelf,
)
from rl.report.runs import read_runs, studies_of
from rl.report.svg import drawing, svg_of
from rl.report.tables import columns_of, measured
from rl.statistics import calibration, calibration_error, risk_coverage

told = st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.6, 0.8, 1.0]), st.booleans()), min_size=1, max_size=30)


@pytest.fixture
def systems(tmp_path):
    def make(**found):
        studies = studies_of(read_runs([write_evaluation(tmp_path, {"clinic": found})])[0])
        return measured(studies), columns_of(studies)

    return make


def voted(pairs):
    """What `evaluation.json` says of votes so sure, and right or not."""
    sure, right = zip(*pairs, strict=True)
    confidence = {**dataclasses.asdict(calibration(sure, right)), "risk_coverage": risk_coverage(sure, right)}
    return result(confidence={**confidence, "n": len(pairs)})


@quiet
@given(st.lists(told, min_size=1, max_size=4))
def test_seeds_taken_together_are_as_if_they_were_one(seeds):
    sure, right = zip(*(pair for seed in seeds for pair in seed), strict=True)
    results = [voted(seed) for seed in seeds]
    whole = calibration(sure, right)
    pooled = bins(results)
    assert [bin for bin, *_ in pooled] == pytest.approx([bin for bin, *_ in whole.bins])
    assert [right for _, right, _ in pooled] == pytest.approx([right for _, right, _ in whole.bins])
    assert [n for *_, n in pooled] == [n for *_, n in whole.bins]
    assert calibration_error(pooled) == pytest.approx(whole.ece)
    for point, expected in zip(risks(results), risk_coverage(sure, right), strict=True):
        assert point == pytest.approx(expected)


def test_where_nobody_voted_there_is_nothing():
    assert bins([result()]) == []
    assert risks([result()]) == []


def test_referrals_are_summed_over_seeds():
    one = result(triage={"accuracy": figure(1.0), "confusion": {"Surgeon": {"Surgeon": 2}}})
    two = result(triage={"accuracy": figure(1.0), "confusion": {"Surgeon": {"Surgeon": 1, "unread": 1}}})
    assert referrals([one, two]) == {"Surgeon": {"Surgeon": 3, "unread": 1}}


def test_the_same_triage_is_drawn_once(systems):
    asked = result(triage={"accuracy": figure(1.0), "confusion": {"Surgeon": {"Surgeon": 2}}})
    nobody = result(triage={"accuracy": figure(0.0), "confusion": {"Surgeon": {"unread": 2}}})
    plots = confusions(*systems(a=asked, b=nobody, c=asked))
    assert [plot.title for plot in plots] == ["clinic: a, c"]
    assert plots[0].about == "Referred of the cases of each label. Surgeon: 2 to Surgeon."


def test_a_plot_says_what_it_shows(systems):
    there, _ = systems(a=result(), b=result())
    plot = tiers(there, "clinic", "clinic")
    row = "easy 100.0 [90.0, 100.0], medium -, hard 10.0 [0.0, 30.0]"
    assert plot.about == f"Accuracy in %. a: {row}; b: {row}."
    sure = voted([(0.5, True), (0.5, False), (1.0, True)])
    (one, *_), _ = systems(a=sure)
    said = reliability([one], "clinic", "clinic").about
    assert said == "a: expected calibration error 0.000, 0.50 right at confidence 0.50, 1.00 right at confidence 1.00."


def test_no_two_systems_look_alike(systems):
    there, _ = systems(**{f"system-{n}": result() for n in range(14)})
    looks = [style(there, one) for one in there]
    assert len({(look["color"], look["marker"]) for look in looks}) == 14
    for name in ("color", "marker"):
        assert len({look[name] for look in looks[:6]}) == 6, "few differ in both"


def test_shelves_without_plots_are_left_out(systems):
    titles = [shelf.title for shelf in shelves(*systems(a=result()))]
    assert titles == ["Accuracy by tier", "Cost against accuracy"]
    titles = [shelf.title for shelf in shelves(*systems(a=voted([(0.6, True)])))]
    assert titles == ["Accuracy by tier", "Cost against accuracy", "Reliability", "Risk against coverage"]
    assert shelves([], {}) == []


def test_training_curves(tmp_path):
    _, (training,) = read_runs([write_training(tmp_path / "run")])
    shelf = training_shelf(training)
    assert shelf.title == "Training: run"
    assert [plot.title.split()[0] for plot in shelf.plots] == ["Reward", "Entropy", "Accuracy:"]
    assert "1-easy" in shelf.plots[0].svg
    assert "Held-out accuracy 50.0 % before, 50.0 % after" in shelf.note


def test_imitation_has_a_loss(tmp_path):
    folder = write_training(tmp_path / "run", ["sft"])
    stage = folder / "stages" / "sft"
    (stage / "rollouts.parquet").unlink()
    (stage / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "entropy": 0.1}\n')
    _, (training,) = read_runs([folder])
    assert [plot.title.split()[0] for plot in training_shelf(training).plots] == ["Loss", "Entropy"]


# SVG


def drawn(title, label="a"):
    with drawing(3, 2) as (figure, axis):
        axis.errorbar([1, 2], [1, 2], yerr=[0.1, 0.1], marker="o", label=label)
        figure.legend()
        return svg_of(figure, title, f"{title} in words")


def test_svg_keeps_to_the_pages_policy():
    text = drawn("one")
    assert "style" not in text
    assert "font-family" not in text
    assert "#1f77b4" in text, "a colour is no reference"
    assert "currentColor" in text
    assert not re.search(r"""(href|src)=["'](?!#)""", text)
    assert not plt.get_fignums(), "no figure stays open"


def test_svg_says_what_it_is():
    said = EVIL.replace("\u2028", "").replace(HALF, "?")
    root = ET.fromstring(drawn(said))
    title, about, *_ = root
    assert (title.text, about.text) == (said, f"{said} in words")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"


def test_svgs_share_no_identifier_and_find_their_own():
    texts = [drawn("one"), drawn("two")]
    ids = [re.findall(r'id="([^"]+)"', text) for text in texts]
    assert len({*ids[0], *ids[1]}) == len(ids[0]) + len(ids[1])
    for text, own in zip(texts, ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(own)


def test_a_name_is_text_in_a_plot():
    text = drawn("one", label=f"$x^2$ {EVIL.replace(HALF, '?')}")
    assert "<script" not in text
    assert "<img" not in text
    assert any("$x^2$" in (element.text or "") for element in ET.fromstring(text).iter())
