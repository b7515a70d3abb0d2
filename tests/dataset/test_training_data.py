"""Training data: batch planning, latent caches and batches of a stage."""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_cli.core.dataset.cache_check import FILES
from lumina_cli.core.dataset.latent_cache import build_stores, check_captions
from lumina_cli.core.dataset.latent_store import LatentStore
from lumina_cli.core.dataset.sampler import Sampler
from lumina_cli.core.dataset.source_fingerprint import fingerprint
from lumina_cli.core.dataset.training_data import TrainingData, caption_kinds, missing_captions, pad
from lumina_cli.core.errors import LuminaError, TooManyRejects
from lumina_cli.core.training.config import Recipe, Stage, Validation

LENGTHS = np.random.default_rng(0).integers(1, 9, (100, 3))
SHAPES = np.zeros(100, np.int64)


def sampler(lengths=LENGTHS, batch=8, **options):
    return Sampler(lengths, np.array([1.0, 2.0, 1.0]), SHAPES[: len(lengths)], batch, seed=1, **options)


@pytest.mark.parametrize("exact", [True, False])
def test_an_epoch_contains_each_image_at_most_once_and_is_reproducible(exact):
    first, again = (sampler(exact=exact) for _ in range(2))
    assert first.steps == 12
    for epoch in range(2):
        rows = np.concatenate([first[epoch * 12 + step].rows for step in range(12)])
        assert len(set(rows)) == len(rows) == 96
    for step in (40, 3, 41):  # in any order
        assert (first[step].rows == again[step].rows).all()
        assert (first[step].captions == again[step].captions).all()


def test_exact_batches_have_one_length_and_only_frequent_ones():
    one = sampler(batch=4, max_lengths=3)
    seen, kinds = set(), []
    for step in range(100):
        batch = one[step]
        lengths = set(LENGTHS[batch.rows, batch.captions])
        kinds.append(batch.exact)
        if batch.exact:
            assert len(lengths) == 1
            seen |= lengths
    assert len(seen) <= 3
    assert {True, False} == set(kinds)


def test_captions_are_drawn_by_their_weights_among_those_that_an_image_has():
    lengths = LENGTHS.copy()
    lengths[:50, 1] = 0
    one = sampler(lengths, exact=False)
    chosen = [
        (row, kind)
        for step in range(1200)
        for row, kind in zip(one[step].rows, one[step].captions, strict=True)
    ]
    assert all(lengths[row, kind] > 0 for row, kind in chosen)
    fractions = np.bincount([kind for row, kind in chosen if row >= 50]) / sum(row >= 50 for row, _ in chosen)
    assert fractions == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_dropout_makes_whole_batches_of_one_length_unconditional():
    one = sampler(dropout=0.3, batch=4, max_lengths=3)
    batches = [one[step] for step in range(4000)]
    dropped = [batch.unconditional for batch in batches if batch.exact]
    assert len(dropped) > 1000
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.04)
    assert not any(batch.unconditional for batch in batches if not batch.exact)


def test_fewer_images_than_a_batch_are_repeated():
    assert len(sampler(LENGTHS[:3])[5].rows) == 8


def test_a_sampler_without_captions_is_an_error():
    with pytest.raises(LuminaError, match="no image has a caption of the requested languages and levels"):
        sampler(np.zeros((5, 3), int))


def encode(pixels):
    """Stand in for an autoencoder: 16 channels, 8x."""
    return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16]


def tokenizer(texts):
    return [[2, *map(ord, text)] for text in texts]


def rows(count, size=(64, 64)):
    random = np.random.default_rng(0)
    for i in range(count):
        captions = {"en": {"short": "abc"[: i % 3 + 1], "tags": "x"}, "de": {"short": "ü"}}
        pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        yield {"image": Image.fromarray(pixels), "captions": captions, "score": float(i)}


def test_cached_latents_equal_the_encoded_images(tmp_path):
    folders = {64: tmp_path / "64", 128: tmp_path / "128"}
    assert list(build_stores(rows(70), folders, encode)) == [64, 70]
    assert list(build_stores(rows(70), folders, encode)) == []
    store = LatentStore(folders[64])
    image = np.asarray(list(rows(70))[69]["image"])
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert store.read(np.array([3, 69])).shape == (2, 16, 8, 8)
    assert torch.allclose(store.read(np.array([3, 69]))[1], encode(pixels)[0], atol=1e-3)
    assert LatentStore(folders[128]).read(np.array([0])).shape == (1, 16, 16, 16)


def test_a_killed_build_continues_after_its_last_complete_chunk(tmp_path):
    def broken():
        yield from list(rows(200))[:150]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(build_stores(broken(), {64: tmp_path / "a"}, encode))
    with (tmp_path / "a" / "latents.bin").open("ab") as file:
        file.write(b"torn")
    assert list(build_stores(rows(200), {64: tmp_path / "a"}, encode)) == [192, 200]
    list(build_stores(rows(200), {64: tmp_path / "b"}, encode))
    for name in ("latents.bin", "rows.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("last", range(1, 9))
def test_a_kill_between_two_sizes_keeps_complete_chunks(tmp_path, last):
    calls, stopped, whole = [], *({64: tmp_path / name / "64", 128: tmp_path / name / "128"} for name in "ab")

    def counted(pixels):
        calls.append(len(pixels))
        if len(calls) == last:
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        list(build_stores(rows(200), stopped, counted))
    assert list(build_stores(rows(200), stopped, counted))[-1] == 200
    assert len(calls) == 8 + 1  # 4 chunks of 2 sizes, and the one that was killed again
    list(build_stores(rows(200), whole, encode))
    for size in whole:
        for name in ("latents.bin", "rows.jsonl", "rejects.jsonl", "progress.json"):
            assert (stopped[size] / name).read_bytes() == (whole[size] / name).read_bytes()


def test_a_size_that_another_run_did_not_finish_catches_up(tmp_path):
    folders = {64: tmp_path / "64", 128: tmp_path / "128"}
    half = build_stores(truncated(tmp_path, 2), {64: folders[64]}, encode)
    assert [next(half), next(half)] == [64, 128]
    half.close()
    assert list(build_stores(truncated(tmp_path, 2), folders, encode)) == [64, 128, 192, 200]
    stores = [LatentStore(folder) for folder in folders.values()]
    assert [len(store) for store in stores] == [198, 198]
    assert stores[0].scores.tolist() == stores[1].scores.tolist()


def test_latents_of_mixed_shapes_are_a_list(tmp_path):
    mixed = [*rows(2), *rows(2, size=(256, 64))]
    list(build_stores(mixed, {128: tmp_path}, encode))
    assert {tuple(x.shape) for x in LatentStore(tmp_path).read(np.arange(4))} == {(16, 16, 16), (16, 8, 32)}


def test_rows_without_captions_are_errors_with_their_number(tmp_path):
    with pytest.raises(LuminaError, match="row 3 of the data has no 'captions'"):
        list(build_stores([*rows(2), {"image": Image.new("RGB", (64, 64))}], {64: tmp_path}, encode))


@pytest.mark.parametrize("captions", ["a cat", {"en": "a cat"}, ["a cat"], {"en": {"short": 3}}])
def test_malformed_captions_are_errors_before_an_image_is_encoded(tmp_path, captions):
    def never(pixels):
        raise AssertionError

    wrong = {"image": Image.new("RGB", (64, 64)), "captions": captions}
    message = r"^'captions' of row 3 of the data is not \{language: \{level: text\}\}$"
    with pytest.raises(LuminaError, match=message):
        list(build_stores([*rows(2), wrong], {64: tmp_path}, never))


def truncated(folder, count):
    """Rows of 200 images; `count` of them are truncated files, the first of them is the 71st."""
    for i, row in enumerate(rows(200)):
        if 70 <= i < 70 + count:
            path = folder / f"{i}.png"
            row["image"].save(path)
            path.write_bytes(path.read_bytes()[:200])
            row = row | {"image": str(path)}
        yield row


def test_truncated_images_are_rejected_with_the_reason(tmp_path):
    assert list(build_stores(truncated(tmp_path, 2), {64: tmp_path / "a"}, encode)) == [64, 128, 192, 200]
    store = LatentStore(tmp_path / "a")
    assert store.scores.tolist() == [i for i in range(200) if i not in (70, 71)]
    rejects = [json.loads(line) for line in (tmp_path / "a" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["row"] for reject in rejects] == [71, 72]
    assert rejects[0]["reason"].startswith(f"{tmp_path / '70.png'}: truncated")


def test_a_killed_build_with_bad_images_continues(tmp_path):
    stopped = build_stores(truncated(tmp_path, 2), {64: tmp_path / "a"}, encode)
    assert [next(stopped), next(stopped)] == [64, 128]
    stopped.close()
    assert list(build_stores(truncated(tmp_path, 2), {64: tmp_path / "a"}, encode)) == [192, 200]
    list(build_stores(truncated(tmp_path, 2), {64: tmp_path / "b"}, encode))
    for name in ("latents.bin", "rows.jsonl", "rejects.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_too_many_bad_images_are_an_error_until_the_rate_is_raised(tmp_path):
    folders, message = (
        {64: tmp_path / "a"},
        r"12 of 200 images cannot be used, more than max_bad_rate=0\.05",
    )
    with pytest.raises(TooManyRejects, match=message):
        list(build_stores(truncated(tmp_path, 12), folders, encode))
    assert list(build_stores(truncated(tmp_path, 12), folders, encode, max_bad_rate=0.1)) == []
    assert len(LatentStore(folders[64])) == 188


def test_a_source_without_usable_images_is_an_error(tmp_path):
    bad = [{"image": str(tmp_path / "gone.png"), "captions": {"en": {"short": "a"}}}] * 3
    with pytest.raises(TooManyRejects, match="none of 3 images can be used"):
        list(build_stores(bad, {64: tmp_path / "a"}, encode, max_bad_rate=1.0))


def test_fingerprint_changes_with_the_source_and_the_weights(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights").write_bytes(b"1")
    first = fingerprint("nano:5", tmp_path / "vae")
    assert fingerprint("nano:6", tmp_path / "vae") != first
    (tmp_path / "vae" / "weights").write_bytes(b"2")
    assert fingerprint("nano:5", tmp_path / "vae") != first


@pytest.fixture
def data(tmp_path):
    def make(**changes):
        stage = {"size": 64, "steps": 5, "batch": 8, "lr": 1e-3, "system": "empty"} | changes.pop("stage", {})
        recipe = Recipe(
            model="nano",
            data="unused",
            stages={"low": Stage(**stage)},
            **{"validation": Validation(samples=5)} | changes,
        )
        made = TrainingData(recipe, tmp_path / "cache", tmp_path)
        list(build_stores(rows(80), made.folders, encode))
        return made.stage("low", tokenizer)

    return make


def test_padded_batches_mask_the_padding_and_drop_single_captions(data):
    stage = data(caption_dropout=0.5)
    batches = [stage.batch(step) for step in range(20)]
    for batch in batches:
        assert batch.ids.shape == batch.mask.shape == (8, 8)
        assert batch.latents.shape == (8, 16, 8, 8)
        assert (batch.ids[~batch.mask] == 0).all()
    lengths = torch.cat([batch.mask.sum(1) for batch in batches])
    assert (lengths == 1).float().mean() == pytest.approx(0.5, abs=0.12)


def test_exact_batches_need_no_mask(data):
    stage = data(exact_lengths=True, caption_dropout=0.2, stage={"batch": 4})
    batches = [stage.batch(step) for step in range(60)]
    assert any(batch.mask is None and batch.ids.shape == (4, 1) for batch in batches)
    assert any(batch.mask is None and batch.ids.shape[1] > 1 for batch in batches)


def test_captions_are_dropped_equally_often_in_exact_and_in_padded_batches(data):
    stage = data(exact_lengths=True, max_lengths=1, caption_dropout=0.2, stage={"batch": 4})
    empty = {"exact": [], "padded": []}
    for step in range(2500):
        batch, kind = stage.batch(step), "exact" if stage.sampler[step].exact else "padded"
        lengths = batch.mask.sum(1) if batch.mask is not None else torch.full((4,), batch.ids.shape[1])
        empty[kind] += (lengths == 1).tolist()
    for kind, dropped in empty.items():
        assert len(dropped) > 2000, kind
        assert np.mean(dropped) == pytest.approx(0.2, abs=0.03), kind


def test_validation_images_are_never_trained_on(data):
    stage = data(stage={"batch": 4})
    held = torch.cat([batch.latents for batch in stage.held_back()])
    assert len(held) == 5
    seen = torch.cat([stage.batch(step).latents for step in range(18)])
    assert not any((x == held).flatten(1).all(1).any() for x in seen)


def test_a_stage_trains_on_the_requested_captions_and_the_best_images(data):
    stage = data(
        stage={"langs": {"de": 1.0}, "captions": {"short": 1.0}, "keep_best": 0.5}, caption_dropout=0.0
    )
    batch = stage.batch(3)
    assert all(ids[mask].tolist() == [2, ord("ü")] for ids, mask in zip(batch.ids, batch.mask, strict=True))
    chosen = np.concatenate([stage.sampler[step].rows for step in range(8)])
    assert chosen.min() >= 40


def test_missing_captions_are_an_error(data):
    with pytest.raises(
        LuminaError, match=r"no caption in fr at level short, tags; the data has de\.short, en\.short"
    ):
        data(stage={"langs": {"fr": 1.0}})


def test_keep_best_without_scores_is_an_error(data, monkeypatch):
    monkeypatch.setitem(globals(), "rows", lambda count, r=rows: ({**row, "score": None} for row in r(count)))
    with pytest.raises(LuminaError, match=r"keep_best=0\.5 needs a 'score' in the rows"):
        data(stage={"keep_best": 0.5})


def test_padding_rounds_up_to_a_multiple_of_eight():
    ids, mask = pad([np.arange(1, 10), np.array([5])])
    assert ids.shape == (2, 16)
    assert mask.sum(1).tolist() == [9, 1]


def test_progress_is_readable_json(tmp_path):
    list(build_stores(rows(3), {64: tmp_path}, encode))
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress == {
        "rows": 3,
        "row_bytes": (tmp_path / "rows.jsonl").stat().st_size,
        "latent_bytes": 6144,
        "rejects": 0,
        "reject_bytes": 0,
        "ready": 0,
        "done": True,
        "crc": {name: zlib.crc32((tmp_path / name).read_bytes()) for name in FILES},
    }


def test_a_row_without_captions_is_an_error_with_its_key():
    rows = [{"captions": {"en": {"short": "a cat"}}}, {"key": "sub/cat"}]
    with pytest.raises(LuminaError, match=r"^row 12 of the data \(sub/cat\) has no 'captions'"):
        check_captions(rows, 10)


def test_a_stage_lists_the_missing_languages_and_levels():
    asked = SimpleNamespace(
        langs={"en": 1.0, "zh": 0.5, "ja": 0.0}, captions={"short": 1.0, "tags": 0.2, "detailed": 0.0}
    )
    captions = [
        {"en": {"short": "a cup"}},
        {"en": {"detailed": "a cup, green"}, "de": {"short": "eine Tasse"}},
    ]
    kinds, _ = caption_kinds(captions, asked)
    assert kinds == [("en", "short")]
    assert missing_captions(kinds, asked) == ["zh", "tags"]
    assert missing_captions(kinds, SimpleNamespace(langs=None, captions=None)) == []
