"""Overlays, selections and encodings: joining, versions, stale overlays, resuming, no copies of shards."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation import scores as scoring
from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.dataset.latent_cache import build_stores
from lumina_cli.core.dataset.latent_store import LatentStore
from lumina_cli.core.dataset.precompute import encode_shards
from lumina_cli.core.dataset.precomputed import PrecomputedLatents
from lumina_cli.core.dataset.shard_encoders import LATENTS, TEXT, decode_npy, split_features
from lumina_cli.core.dataset.source_fingerprint import fingerprint
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.shards.inspect import verify_shards
from lumina_cli.core.shards.overlays.apply import apply_rows, diff_row
from lumina_cli.core.shards.overlays.coverage import describe_missing
from lumina_cli.core.shards.overlays.reader import find_overlays, merge, newest_version
from lumina_cli.core.shards.overlays.verify import describe_overlays
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import open_shards, read_shards
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.source import read_source


def picture(seed: int, size: tuple[int, int] = (72, 64)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size)


def rows(count: int, first: int = 0) -> list[dict]:
    return [
        {
            "key": f"k{i}",
            "image": picture(i),
            "captions": {"en": {"short": f"a red car {i}"}},
            "score": i / 10,
        }
        for i in range(first, first + count)
    ]


def write(dest, source, per_shard=2, **settings) -> str:
    list(write_shards(source, dest, per_shard=per_shard, **settings))
    return str(dest)


@pytest.fixture
def shards(tmp_path) -> str:
    return write(tmp_path / "s", rows(5))


def captioned(shards: str) -> list[dict]:
    """Rows as a captioner writes them: the whole row with more captions."""
    found = [json.loads(json.dumps(row, default=str)) for row in read_source(shards)]
    for row in found:
        row["captions"] = merge(row["captions"], {"de": {"short": f"ein Auto {row['key']}"}})
    return found


def test_new_captions_are_joined_and_the_shards_stay(shards):
    before = filesystem.read_file(f"{shards}/000000.tar")
    told = list(apply_rows(shards, captioned(shards)[:3], "captions"))
    assert told[-1] == {
        "overlay": "captions", "version": "0001", "samples": 3, "rows": 3, "matched": 3, "unmatched": 0,
        "failed": 0,
    }  # fmt: skip
    assert filesystem.read_file(f"{shards}/000000.tar") == before
    joined = list(read_shards(shards))
    assert [row["captions"].get("de") for row in joined[2:]] == [{"short": "ein Auto k2"}, None, None]
    assert joined[0]["captions"]["en"] == {"short": "a red car 0"}
    part = filesystem.read_file(f"{shards}/overlays/captions/0001/000000.tar")
    assert b'{"captions": {"de": {"short": "ein Auto k0"}}}' in part
    assert b"red car" not in part


def test_versions_and_names_in_the_source(shards):
    list(apply_rows(shards, captioned(shards), "captions"))
    second = [{"key": "k0", "captions": {"en": {"short": "newer"}}}]
    list(apply_rows(shards, second, "captions"))
    list(apply_rows(shards, second, "captions"))  # the same rows make no third version
    assert [row["version"] for row in describe_overlays(shards)] == ["0001", "0002"]

    def shorts(source: str) -> list:
        return [row["captions"]["en"]["short"] for row in read_source(source)][:2]

    assert shorts(shards) == ["newer", "a red car 1"]
    assert shorts(f"{shards}?overlay=captions@0001") == ["a red car 0", "a red car 1"]
    assert shorts(f"{shards}?overlay=") == ["a red car 0", "a red car 1"]
    assert "de" in next(read_source(f"{shards}?overlay=captions@0001"))["captions"]
    assert "de" not in next(read_source(shards))["captions"]
    with pytest.raises(UsageError, match=r"no overlay 'caption'; did you mean 'captions'"):
        list(read_source(f"{shards}?overlay=caption"))
    list(apply_rows(shards, [{"key": "k1", "captions": {"ru": {"short": "да"}}}], "captions", add=True))
    first, other, *_ = read_source(shards)
    assert first["captions"] == {"en": {"short": "newer"}}
    assert other["captions"] == {"en": {"short": "a red car 1"}, "ru": {"short": "да"}}


def test_images_of_the_same_name_keep_their_own_captions(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, colour in (("a0.jpg", "red"), ("a0.png", "blue"), ("ü b.c.png", "green")):
        Image.new("RGB", (32, 32), colour).save(photos / name)
    place, rows = tmp_path / "data", list(read_source(photos))
    list(write_shards(rows, place))
    texts = {row["image"]: f"the caption of {row['image']}" for row in rows}
    said = [{**row, "captions": {"en": {"short": texts[row["image"]]}}} for row in rows]
    list(apply_rows(str(place), said, "captions"))
    told = {row["origin"]: row["captions"]["en"]["short"] for row in read_shards(place)}
    assert told == texts


def test_rows_that_match_nothing(shards, tmp_path):
    strange = [
        {"image": f"{tmp_path}/other/000000.tar#k0.png", "captions": {"en": {"short": "x"}}},
        {"key": "zz"},
    ]
    with pytest.raises(LuminaError, match="none of 2 rows matches a sample"):
        list(apply_rows(shards, strange, "captions"))
    assert not filesystem.is_dir(f"{shards}/overlays")
    told = list(apply_rows(shards, [*strange, {"key": "k4", "scores": {"clip": 0.5}}], "captions"))[-1]
    assert (told["matched"], told["unmatched"], told["samples"]) == (1, 2, 1)
    with pytest.raises(UsageError, match="is not a valid overlay name"):
        list(apply_rows(shards, [{"key": "k4"}], "../x"))


def test_an_ambiguous_key_matches_no_sample(tmp_path):
    twice = write(tmp_path / "s", [rows(1)[0], rows(1)[0]], per_shard=1)
    with pytest.raises(LuminaError, match="none of 1 rows"):
        list(apply_rows(twice, [{"key": "k0", "score": 1}], "extra"))
    image = str(list(read_shards(twice))[1]["image"])
    list(apply_rows(twice, [{"image": image, "key": "k0", "score": 7}], "extra"))
    assert [row["score"] for row in read_shards(twice)] == [0.0, 7]


def test_an_overlay_of_other_images_is_stale(shards):
    list(apply_rows(shards, captioned(shards), "captions"))
    write(shards, rows(5, first=20), force=True)
    with pytest.raises(
        LuminaError,
        match=r"overlay captions@0001 does not match: .*000000.tar.*`lumina shard overlay`.*\?overlay=",
    ):
        list(read_source(shards))
    assert len(list(read_source(f"{shards}?overlay="))) == 5
    with pytest.raises(LuminaError, match="does not match"):
        list(read_source(f"{shards}/000001.tar"))


def flip(place, at: int) -> None:
    data = bytearray(place.read_bytes())
    data[at] ^= 1
    place.write_bytes(data)


def no_hashes(folder) -> None:
    """Turn a version into one of an early release, without hashes."""
    for index in folder.glob("*.index.jsonl"):
        first, _, rest = index.read_text().partition("\n")
        base = {name: value for name, value in json.loads(first).items() if name != "sha256"}
        index.write_text(json.dumps(base) + "\n" + rest)
    info = json.loads((folder / "overlay.json").read_text())
    del info["digests"]
    (folder / "overlay.json").write_text(json.dumps(info))


DAMAGE = {
    "a flipped byte": (
        lambda folder: flip(folder / "000001.tar", 530),
        "000001.tar was modified after it was written",
    ),
    "a flipped index": (
        lambda folder: flip(folder / "000001.index.jsonl", 20),
        "captions@0001 does not match",
    ),
    "a cut tar": (lambda folder: cut(folder / "000001.tar"), "000001.tar was modified after it was written"),
    "a lost tar": (lambda folder: (folder / "000001.tar").unlink(), "000001.tar: no such file"),
    "an older cut": (lambda folder: [no_hashes(folder), cut(folder / "000001.tar")], "truncated, k3.json"),
    "an older flip": (
        lambda folder: [no_hashes(folder), flip(folder / "000001.tar", 512)],
        "not a JSON object",
    ),
    "older spans": (
        lambda folder: [no_hashes(folder), flip(folder / "000001.tar", 2)],
        "k2.json is not at the offset",
    ),
    "values": (
        lambda folder: flip(folder / "values.parquet", 40),
        "values.parquet was modified after it was written",
    ),
    "a key": (
        lambda folder: replace(folder / "000001.index.jsonl", "description", "inscription"),
        "overlay.json were modified after they were written",
    ),
}


def cut(place) -> None:
    place.write_bytes(place.read_bytes()[:600])


def replace(place, old: str, new: str) -> None:
    assert old in place.read_text()
    place.write_text(place.read_text().replace(old, new))


@pytest.mark.parametrize("how", DAMAGE)
def test_verify_checks_overlays(shards, capsys, how):
    more = {"description": "lade"} | ({"score": 9} if how == "values" else {})
    list(apply_rows(shards, [row | more for row in captioned(shards)], "captions"))
    folder = Path(newest_version(shards, "captions").folder)
    assert run(["shard", "verify", shards]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "overlay": "captions@0001",
        "samples": 5,
        "ok": True,
        "problem": None,
    }
    damage, words = DAMAGE[how]
    damage(folder)
    assert run(["shard", "verify", shards]) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["ok"] for row in found] == [True, True, True, False]
    assert words in found[-1]["problem"]
    assert err.startswith("lumina shard: 1 damaged file: ")


def test_verify_accepts_overlays_without_hashes_and_names_a_stale_one(shards):
    list(apply_rows(shards, captioned(shards), "captions"))
    no_hashes(Path(newest_version(shards, "captions").folder))
    assert all(row["ok"] for row in verify_shards(shards))
    told = []
    grown = write(shards, rows(7), notify=told.append)
    assert told == [
        f"{shards}: rows added: 2 (k5, k6); shards kept: 2, rewritten: 000002, new: 000003",
        f"the overlays of {shards} (captions) keep the values of unchanged images; compute those of the other "
        f"images with `lumina shard overlay {shards} ROWS --name captions --add`",
    ]
    found = list(verify_shards(grown))
    assert [row["ok"] for row in found] == [True] * 4 + [False]
    assert "captions@0001 does not match: " in found[-1]["problem"]
    assert "000002.tar contains different images" in found[-1]["problem"]
    assert describe_missing(grown) == (
        f"2 of 7 samples of {grown} have no values of captions@0001 in shards with new or changed images; "
        f"compute them with `lumina shard overlay {grown} ROWS --name captions --add`"
    )
    german = [row["captions"].get("de", {}).get("short") for row in read_source(grown)]
    assert [text is None for text in german] == [False] * 5 + [True] * 2
    list(apply_rows(grown, [{"key": "k6", "captions": {"de": {"short": "hallo"}}}], "captions"))
    found = {row["overlay"]: row["ok"] for row in verify_shards(grown) if "overlay" in row}
    assert found == {"captions@0001": True, "captions@0002": True}  # the older one is not read


def test_a_second_writer_of_an_overlay_is_refused(shards, monkeypatch):
    """A second descriptor stands for another process; this process may resume its own version."""
    begin_version(shards, "captions", {"rows": "a"})
    begin_version(shards, "captions", {"rows": "a"})
    folder = Path(shards, "overlays", "captions")
    with pytest.raises(LuminaError, match="overlays/captions is being written by another process"):
        lock_folder(str(folder))
    begin_version(shards, "others", {"rows": "a"}).finish([])
    list(apply_rows(shards, [{"key": "k1", "captions": {"de": {"short": "hallo"}}}], "captions"))
    number = lock_folder(str(folder))
    with pytest.raises(LuminaError, match="overlays/captions is being written by another process"):
        begin_version(shards, "captions", {"rows": "b"})
    os.close(number)
    assert begin_version(shards, "captions", {"rows": "b"}).finish(open_shards(shards)[:0])["samples"] == 0


def test_a_stale_score_selects_nothing(tmp_path):
    from lumina_cli.core.curation.select import SelectionSettings, select_samples

    shards = write(tmp_path / "s", rows(3))
    list(score_shards(shards, ["entropy"]))
    other = [row | {"image": picture(90 + i)} for i, row in enumerate(rows(3))]
    write(shards, other, force=True)
    with pytest.raises(
        LuminaError,
        match=r"overlay scores@0001 does not match: .* recreate the overlay with `lumina shard score`",
    ):
        select_samples(shards, str(tmp_path / "best"), SelectionSettings(best=1, by="entropy"))
    with pytest.raises(UsageError, match="no 'entropy'"):
        select_samples(f"{shards}?overlay=", str(tmp_path / "best"), SelectionSettings(best=1, by="entropy"))


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "k0"}',
        '{"key": "k0", "picture": "x", "members": {"json": [-5, 3]}}',
        "[1]",
        '{"key": 3, "members": {}}',
    ],
)
def test_a_broken_index_is_reported(shards, line):
    list(apply_rows(shards, captioned(shards), "captions"))
    place = f"{shards}/overlays/captions/0001/000000.index.jsonl"
    first = filesystem.read_file(place).split(b"\n")[0]
    filesystem.write_file(place, first + b"\n" + line.encode() + b"\n")
    with pytest.raises(LuminaError, match=r"000000.index.jsonl line 2"):
        list(read_source(shards))


def test_differences_merge_back():
    old = {"a": 1, "c": {"en": {"x": "1", "y": "2"}}, "s": [1]}
    new = {"a": 1, "c": {"en": {"x": "3", "y": "2"}, "de": {"x": "4"}}, "s": [1, 2], "n": None}
    part = diff_row(old, new)
    assert part == {"c": {"en": {"x": "3"}, "de": {"x": "4"}}, "s": [1, 2]}
    assert merge(old, part) == {name: value for name, value in new.items() if name != "n"}


def test_scores_are_measured_once(shards, monkeypatch):
    assert [row["measured"] for row in score_shards(shards, ["sharpness", "phash"])] == [2, 2, 1]
    first = {row["key"]: row for row in read_shards(shards)}
    assert first["k0"]["scores"]["sharpness"] > 0
    assert len(first["k0"]["hashes"]["phash"]) == 16
    assert [row["measured"] for row in score_shards(shards, ["sharpness", "phash"])] == [0, 0, 0]
    seen = []
    real = scoring.measure
    monkeypatch.setattr(scoring, "measure", lambda pictures, by: seen.append(list(by)) or real(pictures, by))
    list(score_shards(shards, ["entropy", "phash"]))
    assert {name for names in seen for name in names} == {"entropy"}
    assert newest_version(shards, "scores").version == "0002"
    again = {row["key"]: row for row in read_shards(shards)}
    assert set(again["k3"]["scores"]) == {"sharpness", "entropy"}
    assert again["k3"]["scores"]["sharpness"] == first["k3"]["scores"]["sharpness"]


def test_scores_of_captions_follow_the_captions(shards):
    told = [{"key": "k1", "caption_scores": {"en": {"short": 0.2, "tags": 0.3}, "de": {"short": 0.4}}}]
    list(apply_rows(shards, told, "captions"))
    assert [row["measured"] for row in score_shards(shards, ["caption", "entropy"])] == [2, 2, 1]

    def scores() -> list:
        return [row["scores"].get("caption") for row in read_shards(shards)]

    assert scores() == [None, 0.3, None, None, None]
    list(apply_rows(shards, [{"key": "k2", "caption_scores": {"en": {"short": 0.7}}}], "captions"))
    assert [row["measured"] for row in score_shards(shards, ["caption"])] == [0, 0, 0]
    assert scores() == [None, None, 0.7, None, None]


def test_new_images_get_all_scores_of_a_version(shards):
    list(score_shards(shards, ["sharpness"]))
    list(score_shards(shards, ["entropy"]))
    write(shards, [*rows(4), *rows(1, first=50)], force=True)
    list(score_shards(shards, ["entropy"]))
    assert [set(row["scores"]) for row in read_shards(shards)] == [{"sharpness", "entropy"}] * 5


def test_scoring_resumes_after_a_kill_and_updates_changed_samples(tmp_path, shards, monkeypatch):
    def files(place: str) -> dict[str, bytes]:
        folder = newest_version(place, "scores").folder
        return {name: filesystem.read_file(f"{folder}/{name}") for name in filesystem.list_sizes(folder)}

    list(score_shards(shards, ["entropy"]))
    whole = files(shards)
    killed = str(shutil.copytree(shards, tmp_path / "killed", ignore=shutil.ignore_patterns("overlays")))
    running = score_shards(killed, ["entropy"])
    next(running)
    running.close()
    assert list(find_overlays(killed)) == []  # unfinished, so it is not read
    assert [row["measured"] for row in score_shards(killed, ["entropy"])] == [0, 2, 1]
    assert files(killed) == whole
    write(killed, [*rows(3), *rows(2, first=30)], force=True)
    told = [(row["measured"], row["reused"]) for row in score_shards(killed, ["entropy"])]
    assert told == [(0, 2), (1, 1), (1, 0)]
    assert len(list(read_source(killed))) == 5


@pytest.mark.slow
def test_workers_and_memory_give_the_same_scores(tmp_path, shards):
    list(score_shards(shards, ["entropy", "phash"], workers=2))
    alone = write("memory://overlays-test/s", rows(5))
    list(score_shards(alone, ["entropy", "phash"], workers=2))
    want, found = ([row["scores"] | row["hashes"] for row in read_shards(place)] for place in (shards, alone))
    assert want == found
    told = list(apply_rows(alone, [{"key": "k1", "captions": {"de": {"short": "hallo"}}}], "captions"))
    assert told[-1]["matched"] == 1
    assert list(read_source(alone))[1]["captions"]["de"] == {"short": "hallo"}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, tiny_folder):
    """Shards encoded by the tiny model at two sizes, with text; return the folder and the messages."""
    folder = write(tmp_path_factory.mktemp("encoded") / "s", rows(5))
    return folder, list(encode_shards(folder, tiny_folder, ["latents", "text"], [64, 128]))


def test_training_uses_precomputed_latents_without_decoding(encoded, tiny_folder, tmp_path):
    from lumina_cli.core.encoders.vae import Autoencoder

    shards, told = encoded
    assert [row["encoded"] for row in told] == [2, 2, 1] * 3
    vae = Autoencoder(tiny_folder)
    plain = {size: tmp_path / f"plain-{size}" for size in (64, 128)}
    ready = {size: tmp_path / f"ready-{size}" for size in (64, 128)}
    list(build_stores(read_source(shards), plain, vae.encode))

    def never(pixels):
        raise AssertionError("an image was encoded again")

    list(build_stores(read_source(shards), ready, never, find=PrecomputedLatents(tiny_folder, [64, 128])))
    for size in (64, 128):
        want, found = LatentStore(plain[size]), LatentStore(ready[size])
        assert (want.shapes == found.shapes).all()
        assert np.allclose(want.values, found.values, atol=2e-3)
        assert want.captions == found.captions


def test_training_encodes_only_missing_latents(encoded, tiny_folder, tmp_path):
    from lumina_cli.core.dataset.latent_cache import count_precomputed
    from lumina_cli.core.encoders.vae import Autoencoder

    vae, shapes = Autoencoder(tiny_folder), []

    def watched(pixels):
        shapes.append(tuple(pixels.shape[2:]))
        return vae.encode(pixels)

    folders = {size: tmp_path / f"{size}" for size in (64, 256)}  # 64 was encoded, 256 was not
    list(
        build_stores(
            read_source(encoded[0]), folders, watched, find=PrecomputedLatents(tiny_folder, [64, 256])
        )
    )
    assert shapes
    assert all(max(shape) > 128 for shape in shapes)
    assert [count_precomputed(folder) for folder in folders.values()] == [5, 0]
    assert len(LatentStore(folders[256])) == len(LatentStore(folders[64])) == 5


def test_training_takes_the_same_features(encoded, tiny_folder, tmp_path):
    from lumina_cli.core.dataset.training_data import StageData
    from lumina_cli.core.encoders.text import TextEncoder
    from lumina_cli.core.training.config import Recipe

    shards = str(shutil.copytree(encoded[0], tmp_path / "s"))
    more = [{"key": f"k{i}", "captions": {"en": {"medium": "cups " * (i + 1)}}} for i in range(5)]
    list(apply_rows(shards, more, "captions"))
    list(encode_shards(shards, tiny_folder, ["text"], []))
    store = tmp_path / "store"
    list(build_stores(read_source(shards), {64: store}, None, find=PrecomputedLatents(tiny_folder, [64])))
    encoder = TextEncoder(tiny_folder)

    def tokenize(texts: list[str]) -> list[list[int]]:
        return encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"]

    stage = {"size": 64, "steps": 4, "batch": 2, "lr": 1e-3}
    for exact in (False, True):
        settings = {"model": "nano", "data": shards, "exact_lengths": exact, "caption_dropout": 0}
        recipe = Recipe.model_validate(settings | {"stages": {"low": stage}, "validation": {"samples": 0}})
        data = StageData(LatentStore(store), recipe, "low", tokenize, tiny_folder)
        for step in range(4):
            batch = data.batch(step)
            attend = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
            want = encoder.model(
                input_ids=batch.ids, attention_mask=attend, use_cache=False
            ).last_hidden_state
            real = attend.bool()
            assert batch.text.shape == want.shape
            assert torch.allclose(batch.text[real], want[real], atol=5e-3)
            assert batch.text.std() > 0.1
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    (other / "text_encoder" / "config.json").write_text(
        (other / "text_encoder" / "config.json").read_text() + " "
    )
    assert StageData(LatentStore(store), recipe, "low", tokenize, other).batch(0).text is None
    assert StageData(LatentStore(store), recipe, "low", tokenize).batch(0).text is None


def test_only_what_changed_is_encoded_again(encoded, tiny_folder, tmp_path):
    shards = str(shutil.copytree(encoded[0], tmp_path / "s"))
    again = list(encode_shards(shards, tiny_folder, ["latents", "text"], [64]))
    assert {row["encoded"] for row in again} == {0}
    list(apply_rows(shards, [{"key": "k1", "captions": {"en": {"short": "two cups"}}}], "captions"))
    told = [row["encoded"] for row in encode_shards(shards, tiny_folder, ["latents", "text"], [64])]
    assert told == [0, 0, 0, 1, 0, 0]
    overlay = newest_version(shards, "text-real")
    tar = f"{shards}/000000.tar"
    line = overlay.open(tar, read_index(tar))["k1"]
    from lumina_cli.core.encoders.text import TextEncoder

    features, mask = TextEncoder(tiny_folder).encode([full_prompt("two cups", "real")])
    [found] = split_features(decode_npy(overlay.read(tar, line, TEXT)), line).values()
    assert np.allclose(found, features[0][mask[0]].numpy(), atol=5e-3)

    write(shards, [*rows(4), *rows(1, first=40)], force=True)
    list(apply_rows(shards, [{"key": "k1", "captions": {"en": {"short": "two cups"}}}], "captions"))
    found = PrecomputedLatents(tiny_folder, [64])
    assert [bool(found(row)) for row in read_source(f"{shards}?overlay=")] == [True] * 4 + [False]
    told = [row["encoded"] for row in encode_shards(shards, tiny_folder, ["latents"], [64])]
    assert told == [0, 0, 1]


def test_another_encoder_makes_another_version(encoded, tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shards = str(shutil.copytree(encoded[0], tmp_path / "s"))
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    [file] = (other / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_in.bias"] = weights["decoder.conv_in.bias"] + torch.ones(1)
    save_file(weights, file, metadata={"format": "pt"})
    assert PrecomputedLatents(other, [64])(next(read_source(shards))) == {}
    assert [row["encoded"] for row in encode_shards(shards, other, ["latents"], [64])] == [2, 2, 1]
    assert newest_version(shards, "latents-64").version == "0002"
    assert set(PrecomputedLatents(other, [64])(next(read_source(shards)))) == {64}
    with pytest.raises(UsageError, match="unknown --what 'latent'; did you mean 'latents'"):
        list(encode_shards(shards, other, ["latent"], [64]))


def test_the_cache_of_a_run_depends_on_overlays(shards, tmp_path, tiny_folder):
    parts = tmp_path / "parts"
    parts.mkdir()
    before = fingerprint(shards, parts)
    assert fingerprint(shards, parts) == before
    list(apply_rows(shards, captioned(shards), "captions"))
    known = fingerprint(shards, parts)
    assert known != before
    list(encode_shards(shards, tiny_folder, ["latents"], [64]))
    assert fingerprint(shards, parts) == known
    remote = write("memory://overlays-test/f", rows(2))
    first = fingerprint(remote, parts)
    list(apply_rows(remote, [{"key": "k1", "score": 3}], "extra"))
    assert fingerprint(remote, parts) != first


def test_the_command_line(shards, tmp_path, capsys, monkeypatch):
    assert run(["shard", "score", shards, "--scores", "entropy", "--model", "entropy"]) == 2
    assert "expected SCORE=MODEL" in capsys.readouterr().err
    assert run(["shard", "score", shards, "--scores", "entropy"]) == 0
    lines = "\n".join(json.dumps(row) for row in captioned(shards))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    capsys.readouterr()
    assert run(["shard", "overlay", shards, "-", "--name", "german"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["matched"] == 5
    assert run(["shard", "overlay", shards]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["overlay"], row["fields"]) for row in listed] == [
        ("german", ["captions"]),
        ("scores", ["scores"]),
    ]
    assert run(["shard", "encode", shards, "--size", "64"]) == 0
    assert '"overlay": "latents-64"' in capsys.readouterr().out
    assert decode_npy(newest(shards, "latents-64")).shape == (16, 8, 8)


def newest(shards: str, name: str) -> bytes:
    overlay, tar = newest_version(shards, name), f"{shards}/000000.tar"
    return overlay.read(tar, overlay.open(tar, read_index(tar))["k0"], LATENTS)


def test_a_selection_is_scored_and_encoded_alone(shards, tiny_folder, tmp_path):
    from lumina_cli.core.curation.select import SelectionSettings, select_samples

    best = str(tmp_path / "best")
    select_samples(shards, best, SelectionSettings(best=2))
    list(score_shards(shards, ["sharpness"]))
    assert [row["measured"] for row in score_shards(best, ["entropy"])] == [0, 1, 1]
    assert [row["measured"] for row in score_shards(best, ["entropy"])] == [0, 0, 0]
    assert ["entropy" in row["scores"] for row in read_source(shards)] == [False, False, False, True, True]
    assert all("sharpness" in row["scores"] for row in read_source(shards))
    assert [row["measured"] for row in score_shards(shards, ["entropy"])] == [2, 1, 0]
    assert all("entropy" in row["scores"] for row in read_source(shards))

    for first, second in (("latents", [2, 1, 0]), ("text", [2, 1, 0])):
        assert [row["encoded"] for row in encode_shards(best, tiny_folder, [first], [64])] == [0, 1, 1]
        assert [row["encoded"] for row in encode_shards(best, tiny_folder, [first], [64])] == [0, 0, 0]
        found = PrecomputedLatents(tiny_folder, [64])
        assert (
            first == "text" or [bool(found(row)) for row in read_source(shards)] == [False] * 3 + [True] * 2
        )
        assert [row["encoded"] for row in encode_shards(shards, tiny_folder, [first], [64])] == second
        assert [row["encoded"] for row in encode_shards(shards, tiny_folder, [first], [64])] == [0, 0, 0]
    assert list(apply_rows(best, captioned(best), "captions"))[-1]["matched"] == 2


def test_unreadable_images_are_counted_once(tmp_path, tiny_folder):
    from lumina_cli.core.shards.tar import tar_header

    (tmp_path / "s").mkdir()
    data = b"no picture"
    tar = tar_header("bad.jpg", len(data)) + data + bytes(-len(data) % 512) + bytes(1024)
    (tmp_path / "s" / "a.tar").write_bytes(tar)
    folder = str(tmp_path / "s")
    for row in (
        next(score_shards(folder, ["entropy"])),
        next(encode_shards(folder, tiny_folder, ["latents"], [64])),
    ):
        assert row["unreadable"] == 1
    again = (
        list(score_shards(folder, ["entropy"])),
        list(encode_shards(folder, tiny_folder, ["latents"], [64])),
    )
    assert [[(row["unreadable"], row["reused"]) for row in rows] for rows in again] == [[(1, 0)], [(1, 0)]]
    assert next(iter(read_source(f"{folder}?overlay=scores"))).get("scores") is None
