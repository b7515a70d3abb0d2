"""Reports of shards and of captioners: figures computed by hand, and pages that run no code from rows."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.report import caption_stats
from lumina_cli.core.curation.report.contact_sheet import write_preview
from lumina_cli.core.curation.report.stats import compute_stats, write_stats_page
from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.curation.select import SelectionSettings, select_samples
from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.evals.captions.compare import dice, open_files, summarize
from lumina_cli.core.evals.captions.density import count_facts, length_of
from lumina_cli.core.images.buckets import best_size
from lumina_cli.core.io.html import histogram, pick_evenly
from lumina_cli.core.shards.overlays.apply import apply_rows
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.sources.source import read_source

EVIL = '<script>alert(1)</script> "><img src=x onerror=alert(2)> {{ 7 * 7 }}'
SIZES = ((64, 64), (320, 200), (90, 300), (700, 500))


def rows() -> list[dict]:
    made = []
    for i in range(8):
        small = np.random.default_rng(0 if i == 7 else i).integers(0, 255, (5, 6, 3), np.uint8)
        image = Image.fromarray(small).resize(SIZES[i % 4] if i < 7 else SIZES[0])
        texts = {"short": "a red car", "detailed": f"{EVIL} " + "word " * 40 * i}
        row = {"key": f"k{i}", "image": image, "source": "web" if i < 6 else EVIL}
        made.append(
            row
            | (
                {"captions": {"en": texts} | ({"zh": {"short": "一辆红色的汽车"}} if i < 2 else {})}
                if i
                else {}
            )
        )
    return [*made, {"key": "bad", "image": b"GIF89a"}, {"key": "bad2", "image": "gone.png"}]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("pages") / "s")
    list(write_shards(rows(), folder, per_shard=4, max_bad_rate=1))
    list(score_shards(folder, ["entropy", "phash"]))
    return folder


def test_the_summary_counts_samples_captions_and_copies(shards):
    found = compute_stats(shards, count=lambda texts: [len(text.split()) for text in texts], trained=100)
    assert found["samples"] == 8
    assert found["yield"]["input"] == 10
    assert sum(found["yield"]["rejects"].values()) == 2
    assert found["without_captions"] == 1
    assert found["languages"] == {"en": 7, "zh": 1}
    assert found["levels"] == {"detailed": 7, "short": 7}
    assert found["captions"]["en.short"]["characters"]["p50"] == len("a red car")
    detailed = found["captions"]["en.detailed"]
    prompt = found["system_prompt_tokens"]
    lengths = [len(EVIL.split()) + 40 * i + prompt for i in range(1, 8)]
    assert detailed["tokens"]["most"] == max(lengths)
    assert detailed["over_256_tokens"] == round(sum(length > 256 for length in lengths) / 7, 5)
    assert 0 < detailed["over_256_tokens"] < 1
    assert found["duplicates"]["exact"] == {"copies": 1, "share": 0.125, "largest_group": 2}
    assert found["duplicates"]["near"]["copies"] >= 1
    assert found["sources"]["web"]["epochs"] == pytest.approx(100 / 8)
    assert found["scores"]["entropy"]["samples"] == 8


def test_tokens_are_counted_by_default(shards, tmp_path, capsys):
    nano = TokenCounter("nano")
    found = compute_stats(shards)
    assert found["tokenizer"] == "nano"
    short = found["captions"]["en.short"]["tokens"]
    assert short["most"] == nano(["a red car"])[0] + found["system_prompt_tokens"]
    assert found["over_256_tokens"] == compute_stats(shards, count=nano)["over_256_tokens"] > 0
    assert run(["shard", "stats", shards]) == 0
    assert "bundled tokenizer; Gemma's counts differ" in capsys.readouterr().err
    own = str(tmp_path / "own")
    list(write_shards(rows()[:8], own, count=Words()))
    found = compute_stats(own)
    assert found["tokenizer"] == "that of the shards (words)"
    assert found["captions"]["en.short"]["tokens"]["most"] == 3


class Words:
    """Counts words, as another tokenizer would."""

    digest = "words"

    def __call__(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def test_captions_that_failed_their_checks_are_counted(tmp_path, capsys, monkeypatch):
    failed = [
        {"lang": "en", "level": "short", "code": "refusal", "reason": "it refuses", "text": EVIL},
        {"lang": "de", "level": "short", "code": EVIL, "reason": "not in German", "text": ""},
    ]
    made = [
        row | ({"rejected_captions": failed[: i + 1]} if i < 2 else {}) for i, row in enumerate(rows()[:4])
    ]
    list(write_shards(made, str(tmp_path / "s")))
    words = ["shard", "stats", str(tmp_path / "s"), "--page", str(tmp_path / "p.html")]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["rejected_captions"] == {"refusal": 2, EVIL: 1}
    assert "Rejected captions" in check_page(tmp_path / "p.html")
    # if the writer counted tokens, the indexes contain all of it, for a selection, too
    list(write_shards(made, str(tmp_path / "t"), count=Words()))
    select_samples(
        str(tmp_path / "t"), str(tmp_path / "u"), SelectionSettings(where=[f"key = '{made[1]['key']}'"])
    )
    monkeypatch.setattr(caption_stats, "read_source", None)
    assert compute_stats(str(tmp_path / "t"), Words())["rejected_captions"] == {"refusal": 2, EVIL: 1}
    assert compute_stats(str(tmp_path / "u"), Words())["rejected_captions"] == {"refusal": 1, EVIL: 1}


def test_the_summary_of_a_selection_contains_its_steps(shards, tmp_path):
    select_samples(shards, str(tmp_path / "a"), SelectionSettings(best=0.5, by="entropy"))
    select_samples(str(tmp_path / "a"), str(tmp_path / "b"), SelectionSettings(where=["width > 64"]))
    left = len(list(read_source(str(tmp_path / "b"))))
    found = compute_stats(str(tmp_path / "b"))
    assert (found["samples"], found["yield"]["share"]) == (left, 0.8)
    assert found["selection"]["share"] == left / 8
    steps = [(step["step"], step["left"]) for step in found["selection"]["steps"]]
    assert steps == [("samples", 8), ("best by entropy", 4), ("samples", 4), ("width > 64", left)]
    page = write_stats_page(tmp_path / "p.html", found)
    assert "best by entropy" in check_page(page)
    assert compute_stats(shards)["selection"] is None


def test_buckets_equal_those_of_training(shards):
    found = compute_stats(shards)["buckets"]
    sizes = [SIZES[i % 4] if i < 7 else SIZES[0] for i in range(8)]
    for size in (256, 1024):
        boxes = [best_size(*pair, size) for pair in sizes]
        names = [f"{width}x{height}" for width, height in boxes]
        assert found[str(size)]["crops"] == {name: names.count(name) for name in names}
        kept = [
            min(x, y) / max(x, y)
            for (w, h), (a, b) in zip(sizes, boxes, strict=True)
            for x, y in [(a / w, b / h)]
        ]
        assert found[str(size)]["kept_area"] == pytest.approx(np.mean(kept), abs=1e-4)
        larger = [a > w or b > h for (w, h), (a, b) in zip(sizes, boxes, strict=True)]
        assert found[str(size)]["enlarged"] == np.mean(larger)


def test_a_mix_determines_the_epochs_of_each_source(shards):
    sources = compute_stats(shards, trained=600, mix={"web": 3, EVIL: 1})["sources"]
    assert sources["web"]["epochs"] == 600 * 0.75 / 6
    assert sources[EVIL]["epochs"] == 600 * 0.25 / 2
    with pytest.raises(UsageError, match="no sample is from this source"):
        compute_stats(shards, trained=600, mix={"wep": 3})


def test_captions_of_overlays_are_counted(shards, tmp_path):
    import shutil

    copy = str(shutil.copytree(shards, tmp_path / "s"))
    list(apply_rows(copy, [{"key": "k0", "captions": {"de": {"short": "ein Auto"}}}], "captions"))
    found = compute_stats(copy)
    assert found["without_captions"] == 0
    assert found["captions"]["de.short"]["characters"]["most"] == len("ein Auto")


def check_page(path) -> str:
    """Return a page after checking that it runs only the script of its own policy, and loads nothing."""
    text = path.read_text()
    assert re.findall(r"<script", text) == ["<script"]
    assert "default-src 'none'" in text
    assert "onerror=alert(2)>" not in text.replace("onerror=alert(2)&gt;", "")
    assert "49" not in re.findall(r"\{\{[^}]*\}\}|49 ", text)
    assert all(link.startswith("data:image/jpeg;base64,") for link in re.findall(r'src="([^"]*)"', text))
    assert "&lt;script&gt;alert(1)" in text
    return text


def test_pages_of_shards(shards, tmp_path, capsys):
    page = tmp_path / "stats.html"
    words = ["shard", "stats", shards, "--tokenizer", "nano", "--trained", "100", "--mix", "web=1"]
    assert run([*words, "--page", str(page)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["yield"]["share"] == 0.8
    assert "plots" not in summary
    text = check_page(page)
    for word in ("80.0 %", "en.detailed", "Crops at 1024", "entropy", "Rejected rows"):
        assert word in text
    found = write_preview(shards, tmp_path / "p.html", samples=5, by="entropy")
    assert found["samples"] == 5
    assert len(re.findall("<figure", check_page(tmp_path / "p.html"))) == 5
    with pytest.raises(UsageError, match=r"no 'entropi'.* did you mean 'entropy'"):
        write_preview(shards, tmp_path / "p.html", by="entropi")


def test_histograms():
    whole = histogram(np.array([3, 3, 4, 6]))
    assert [bar["count"] for bar in whole["bars"]] == [2, 1, 0, 1]
    marked = histogram(np.arange(1000), mark=257)
    assert sum(bar["count"] for bar in marked["bars"]) == 1000
    assert sum(bar["count"] for bar in marked["bars"] if bar["beyond"]) == 1000 - 257
    assert histogram(np.array([np.nan])) is None
    assert sum(bar["count"] for bar in histogram(np.full(5, 0.016))["bars"]) == 5
    assert pick_evenly(list(range(10)), 5) == [1, 3, 5, 7, 9]


def test_density_by_hand():
    assert count_facts("A red car is left of two small blue balls; behind it, a tree.", "en") == {
        "objects": 3, "attributes": 3, "relations": 2,
    }  # fmt: skip
    assert count_facts("一辆红色的汽车在两个蓝色的球的左边", "zh") == {
        "objects": 2,
        "attributes": 2,
        "relations": 1,
    }
    assert count_facts("Красный мяч слева от синей чашки", "ru") == {
        "objects": None, "attributes": 2, "relations": 1,
    }  # fmt: skip
    assert count_facts("un coche rojo", "es") == dict.fromkeys(("objects", "attributes", "relations"))
    assert (length_of("a well-known car's wheel", "en"), length_of("一辆汽车 ABC", "zh")) == (4, 5)


def test_agreement_of_texts():
    assert dice("a red car", "a  RED car", "en") == 1
    assert dice("abc", "xyz", "en") == 0
    assert dice("abcd", "abce", "en") == pytest.approx(0.5)
    assert dice("红色汽车", "红色的汽车", "zh") == pytest.approx(4 / 7)


def test_captions_compared(shards, tmp_path, capsys):
    first = [json.loads(json.dumps(row, default=str)) for row in read_source(shards)][1:]
    second = [
        row | {"captions": {"en": {"short": "a red car" if i else "two cups"}}} for i, row in enumerate(first)
    ]
    for name, some in (("a", first), ("b", second[:4])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    page = tmp_path / "c.html"
    assert (
        run(["eval", "captions", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--page", str(page)])
        == 0
    )
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    short = {row["file"]: row for row in found if (row["lang"], row["level"]) == ("en", "short")}
    assert short["a.jsonl"]["captions"] == 7
    assert short["a.jsonl"]["objects"] == pytest.approx(100 / 3, abs=0.01)
    assert short["b.jsonl"]["different"] == 0.5
    agree = dice("a red car", "two cups", "en")
    assert short["b.jsonl"]["agreement"] == {"a.jsonl": pytest.approx((3 + agree) / 4, abs=1e-4)}
    text = check_page(page)
    assert "4 images in common" in text
    assert text.count('class="card pair"') == 4


def test_files_without_captions_are_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"image": "x.png"}\n')
    with pytest.raises(LuminaError, match="has no captions to compare"):
        open_files([str(tmp_path / "a.jsonl")], read_source)


def test_files_with_equal_names_and_moved_images():
    def read(source: str):
        return [{"key": "one", "image": f"/{source}/1.png", "captions": {"en": {"tags": "car"}}}]

    files = open_files(["x/rows.jsonl", "y/rows.jsonl"], read)
    assert [file.name for file in files] == ["x/rows.jsonl", "y/rows.jsonl"]
    assert [row["agreement"] for row in summarize(files)] == [{"y/rows.jsonl": 1.0}, {"x/rows.jsonl": 1.0}]


def test_nano_captions_are_compared_as_facts(tmp_path, capsys):
    found = list(read_source("nano:6?size=64"))
    for number, row in enumerate(found):
        row["image"].save(tmp_path / f"{number}.png")
        row["image"] = f"{number}.png"
    wrong = [
        row | {"captions": {"en": next_row["captions"]["en"]}}
        for row, next_row in zip(found, found[1:] + found[:1], strict=True)
    ]
    bare = [
        {name: row[name] for name in ("image", "captions")} for row in wrong
    ]  # its scenes are in the other file
    for name, some in (("true", found), ("wrong", bare)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    page = tmp_path / "c.html"
    files = [str(tmp_path / f"{name}.jsonl") for name in ("true", "wrong")]
    assert run(["eval", "captions", *files, "--page", str(page)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    short = {row["file"]: row for row in rows if (row["lang"], row["level"]) == ("en", "short")}
    assert short["true.jsonl"]["truth"]["objects"]["f1"] == 1
    assert short["wrong.jsonl"]["truth"]["objects"]["f1"] < 0.6
    assert short["true.jsonl"]["facts"]["objects"] > 5
    assert short["true.jsonl"]["fact_agreement"]["wrong.jsonl"] < 0.6
    russian = next(row for row in rows if row["lang"] == "ru" and row["level"] == "detailed")
    assert russian["fact_agreement"] == {}
    assert russian["truth"]["objects"]["recall"] > 0.9
    assert "Compared with the true scenes" in page.read_text()
