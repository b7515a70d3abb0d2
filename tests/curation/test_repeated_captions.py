"""Repeated captions in the statistics of shards: different texts, the most frequent ones, and a warning."""

import pytest

from lumina_cli.core.curation.report import caption_texts
from lumina_cli.core.curation.report.caption_texts import CaptionTexts
from lumina_cli.core.curation.report.stats import compute_stats
from lumina_cli.core.images.io import png_bytes
from lumina_cli.core.shards.pack import write_shards


def packed(dest, texts: list[str], **options) -> str:
    from PIL import Image

    image = png_bytes(Image.new("RGB", (8, 8)))
    rows = [
        {"key": f"{i:05d}", "image": image, "captions": {"en": {"short": text}}}
        for i, text in enumerate(texts)
    ]
    list(write_shards(rows, dest, **options))
    return str(dest)


def test_different_and_frequent_captions(tmp_path, lumina):
    shards = packed(tmp_path / "s", ["photo"] * 30 + ["a cup", "a cup"] + [f"cup {i}" for i in range(8)])
    code, (found,), err = lumina(f"shard stats {shards} --page {tmp_path}/p.html")
    assert code == 0
    assert (found["caption_texts"]["examined"], found["caption_texts"]["different"]) == (40, 10)
    assert found["caption_texts"]["most_frequent"][:2] == [
        {"text": "photo", "captions": 30, "share": 0.75},
        {"text": "a cup", "captions": 2, "share": 0.05},
    ]
    assert "30 of 40 captions are the same text: 'photo'\n" in err
    page = (tmp_path / "p.html").read_text()
    assert "10 different texts among 40 captions" in page
    assert "<td>photo</td>" in page


@pytest.mark.parametrize(
    ("texts", "warned"),
    [
        ([f"cup {i}" for i in range(50)], False),
        (["photo"] * 19 + ["a cup"], False),  # too few to judge
        (["photo"] * 20 + [f"cup {i}" for i in range(20)], True),
        (["photo"] * 20 + [f"cup {i}" for i in range(200)], False),
        ([], False),
    ],
)
def test_only_many_equal_captions_are_reported(texts, warned):
    counted = CaptionTexts()
    for text in texts:
        counted.add(text)
    summary = {
        "caption_texts": counted.summary(len(texts)),
        "captions": {"en.short": {"captions": len(texts)}},
    }
    assert (caption_texts.repeated_caption(summary) is not None) == warned


def test_thousands_of_images_with_one_text_are_reported_at_any_share():
    counted = CaptionTexts()
    for i in range(30_000):
        counted.add("photo" if i % 20 == 0 else f"cup {i}")
    summary = {"caption_texts": counted.summary(30_000), "captions": {"en.short": {"captions": 30_000}}}
    assert caption_texts.repeated_caption(summary) == "1500 of 30000 captions are the same text: 'photo'"
    assert summary["caption_texts"]["different"] == 28_501


def test_overlays_tokens_and_selections_are_counted(tmp_path, lumina):
    from lumina_cli.core.encoders.token_count import TokenCounter
    from lumina_cli.core.shards.overlays.apply import apply_rows

    shards = packed(tmp_path / "s", ["photo"] * 6, count=TokenCounter("nano"))
    assert compute_stats(shards)["caption_texts"]["different"] == 1
    list(apply_rows(shards, [{"key": "00001", "captions": {"en": {"short": "a cup"}}}], "captions"))
    assert compute_stats(shards)["caption_texts"]["different"] == 2
    assert lumina(f"shard select {shards} {tmp_path}/best --where \"key != '00001'\"")[0] == 0
    assert compute_stats(f"{tmp_path}/best")["caption_texts"]["different"] == 1


def test_of_many_samples_only_some_are_read(tmp_path, monkeypatch):
    from lumina_cli.core.encoders.token_count import TokenCounter

    shards = packed(
        tmp_path / "s", [f"cup {i // 2}" for i in range(40)], count=TokenCounter("nano"), per_shard=7
    )
    monkeypatch.setattr(caption_texts, "EXAMINED", 10)
    found = compute_stats(shards)["caption_texts"]
    assert (found["examined"], found["different"]) == (10, 10)
    assert found["most_frequent"][0]["captions"] == 4  # extrapolated to all captions
