"""Figures on pages: text of codes, percentages, histograms, marked differences."""

import html
import json
import re

import numpy as np
import pytest
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.report.contact_sheet import write_preview
from lumina_cli.core.curation.report.stats import compute_stats, write_stats_page
from lumina_cli.core.evals.captions.page import headline, marked
from lumina_cli.core.images.ingest import NOTES
from lumina_cli.core.io.html import TEMPLATES, histogram
from lumina_cli.core.shards.pack import write_shards

EVIL = '<script>alert(1)</script> "><img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """Eight samples, one of them with alpha, and two rejected rows."""
    folder = tmp_path_factory.mktemp("words")
    made = []
    for i in range(8):
        mode = "RGBA" if i == 3 else "RGB"
        path = folder / f"{i}.png"
        Image.new(mode, (96, 64 + i), (10 * i, 40, 80, 100)[: len(mode)]).save(path)
        made.append({"key": f"k{i}", "image": str(path), "captions": {"en": {"short": "a " * (i + 1)}}})
    made += [{"key": "u", "image": "gone.png", "error": "unreadable"}, {"key": "e", "image": "gone.png"}]
    list(write_shards(made, str(folder / "s"), max_bad_rate=1))
    return str(folder / "s")


def test_rejects_are_described_as_percentages_of_the_input(shards, tmp_path):
    text = write_stats_page(tmp_path / "p.html", compute_stats(shards)).read_text()
    assert "rejected by lumina caption" in text
    assert "Fractions of all 10 input rows." in text
    assert text.count("<span>1 (10.0 %)</span>") == 2
    assert 'class="bad" style="width: 10.00%"' in text
    done = text.split("Conversions when images are read")[1]
    assert 'blended over white (alpha)</span><div class="track"><i style="width: 12.50%"' in done
    assert "en.short in characters" in text
    assert "en.short in tokens" in text


def test_every_note_has_words():
    known = Environment(loader=FileSystemLoader(TEMPLATES)).get_template("words.html").module
    assert set(known.notes) == set(NOTES)
    assert all(known.reasons.values())


def test_tables_scroll_and_can_be_reached_by_key(shards, tmp_path):
    text = write_stats_page(tmp_path / "p.html", compute_stats(shards)).read_text()
    before = re.findall(r"<div ([^>]*)><table>", text)
    assert len(before) == text.count("<table>") > 1
    for attributes in before:
        assert 'class="card scroll" role="region" tabindex="0" aria-label="' in attributes


def test_previews_show_conversions_of_an_image(shards, tmp_path):
    write_preview(shards, tmp_path / "p.html")
    cards = (tmp_path / "p.html").read_text().split("<figure")[1:]
    assert [("blended over white (alpha)" in card) for card in cards] == [i == 3 for i in range(8)]
    assert "<b " not in cards[0]  # one language and one level need no label


@pytest.mark.parametrize("count", [1, 12, 50, 500])
@pytest.mark.parametrize("mark", [None, 257])
def test_the_number_of_bars_fits_the_values(count, mark):
    values = np.random.default_rng(count).integers(20, 900, count)
    told = histogram(values, mark=mark)
    assert 1 <= len(told["bars"]) <= max(10, 2 * np.sqrt(count), 1)
    assert sum(bar["count"] for bar in told["bars"]) == count
    assert isinstance(told["from"], int)
    assert isinstance(told["to"], int)
    assert told["from"] == values.min()
    assert told["to"] == values.max() or told["cut"]
    assert all("." not in bar["label"] for bar in told["bars"])
    beyond = sum(bar["count"] for bar in told["bars"] if bar["beyond"])
    if mark and values.max() > mark > values.min():
        assert beyond == (values >= mark).sum()


def test_bars_are_labelled_with_their_range():
    told = histogram(np.array([99, 100, 150, 211, 211, 180, 190, 200, 201, 202, 203, 204]))
    for bar in told["bars"]:
        low, high = map(int, bar["label"].split(" to "))
        inside = [v for v in (99, 100, 150, 211, 211, 180, 190, 200, 201, 202, 203, 204) if low <= v <= high]
        assert bar["count"] == len(inside)


@pytest.mark.parametrize(
    ("text", "other", "lang", "new"),
    [
        ("a red ball, a blue cup", "a green ball, a blue cup", "en", ["red"]),
        ("a very small red ball", "a ball", "en", ["very small red"]),
        ("A Ball!", "a ball", "en", []),
        ("红色的球", "蓝色的球", "zh", ["红"]),
        ("anything", None, "en", []),
        (f"{EVIL} cup", "cup", "en", None),
        ("", "a", "en", []),
        ("one", "x" * 5000, "en", []),
    ],
)
def test_words_that_only_one_side_has_are_marked(text, other, lang, new):
    pieces = marked(text, other, lang)
    assert "".join(piece for piece, _ in pieces) == text
    if new is not None:
        assert [piece for piece, is_new in pieces if is_new] == new


def test_marks_and_verdicts_on_the_page(tmp_path, capsys):
    for name, text in (("a", f"a red ball {EVIL}"), ("b", "a red ball and one more thing " * 4)):
        rows = [{"key": f"k{i}", "captions": {"en": {"short": text}}} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "c.html"
    files = [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    assert run(["eval", "captions", *files, "--page", str(page)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    text = page.read_text()
    assert "b.jsonl is " in text
    assert "% longer than a.jsonl" in text
    assert "<mark>script</mark>&gt;" in text
    assert len(re.findall("<script", text)) == 1
    shown = re.findall(r'<p class="words" dir="auto" lang="en">(.*?)</p>', text)
    assert {html.unescape(re.sub("</?mark>", "", each)) for each in shown[::2]} == {f"a red ball {EVIL}"}
    assert headline(rows[0])["agreement"] == round(rows[0]["agreement"]["b.jsonl"], 2)
    assert list(headline(rows[0])) == ["file", "kind", "captions", "words", "said per 100", "agreement"]
