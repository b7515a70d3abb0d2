"""Selections by conditions, copies, sources and scores."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.filter_expr import parse_where
from lumina_cli.core.curation.sample_table import open_samples
from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.curation.select import SelectionSettings, parse_best, select_samples
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import lock_folder
from lumina_cli.core.shards.overlays.apply import apply_rows
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.sources.source import open_row_image, read_source


def draw_image(seed: int, size: tuple[int, int]) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size)


def rows() -> list[dict]:
    """Twelve images of three widths from two sources; k10 equals k0, k11 is nearly k1, and is the best of both."""
    made = []
    for i in range(12):
        seed = {10: 0, 11: 1}.get(i, i)
        image = draw_image(seed, ((48, 64, 96)[seed % 3], 48))
        if i == 11:
            image = image.copy()
            image.putpixel((0, 0), (0, 0, 0))
        row = {
            "key": f"k{i}",
            "image": image,
            "captions": {"en": {"short": "x" * (i + 1)}},
            "score": float(i),
        }
        made.append(row | {"source": "web" if i % 2 else "photos"})
    return made


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("select") / "s")
    list(write_shards(rows(), folder, per_shard=5))
    list(score_shards(folder, ["sharpness", "phash"]))
    return folder


def keys(shards: str, dest, **settings) -> list[str]:
    select_samples(shards, str(dest), SelectionSettings(**settings))
    return [row["key"] for row in read_source(str(dest))]


def test_the_best_fraction_is_in_the_order_of_the_shards(shards, tmp_path):
    assert keys(shards, tmp_path / "a", best=0.25) == ["k9", "k10", "k11"]
    assert keys(shards, tmp_path / "b", best=2) == ["k10", "k11"]
    sharp = sorted(read_source(shards), key=lambda row: -row["scores"]["sharpness"])[0]["key"]
    assert keys(shards, tmp_path / "c", best=1.0, by="score") == [f"k{i}" for i in range(12)]
    assert keys(shards, tmp_path / "e", best=1) == ["k11"]
    assert keys(shards, tmp_path / "f", best=0.001) == ["k11"]
    assert sharp in keys(shards, tmp_path / "d", best=3, by="sharpness")


def test_samples_are_selected_by_conditions(shards, tmp_path):
    wide = ["k2", "k5", "k8"]
    assert keys(shards, tmp_path / "a", where=["width >= 96"]) == wide
    assert keys(shards, tmp_path / "b", where=["aspect > 1.9 and score < 6"]) == ["k2", "k5"]
    assert keys(shards, tmp_path / "c", where=["aspect>1.9", "source == 'web'"]) == ["k5"]
    assert keys(shards, tmp_path / "d", where=["characters <= 2"]) == ["k0", "k1"]
    assert keys(shards, tmp_path / "e", where=["key = k7"]) == ["k7"]
    assert keys(shards, tmp_path / "f", where=["pixels < 3000 and ratio == 1"]) == [
        "k0",
        "k3",
        "k6",
        "k9",
        "k10",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width", "expected a comparison such as NAME < VALUE"),
        ("width > 3 or height > 3", "only 'and' is supported, found 'or'"),
        ("__import__('os') > 1", "expected a comparison such as NAME < VALUE"),
        ("widht > 3", "did you mean 'width'"),
        ("width > wide", "cannot compare numeric field 'width' with 'wide'"),
        ("languages == en", "no 'languages'"),
    ],
)
def test_invalid_conditions_are_errors(shards, tmp_path, text, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        select_samples(shards, str(tmp_path / "a"), SelectionSettings(where=[text]))
    assert not (tmp_path / "a").exists()


def test_conditions_are_parsed_and_not_evaluated_as_code():
    assert parse_where("a.b >= -1.5e3 and c != 'x and y'") == [("a.b", ">=", -1500.0), ("c", "!=", "x and y")]


def test_the_best_of_each_group_of_copies_is_kept(shards, tmp_path):
    exact = keys(shards, tmp_path / "a", copies="exact")
    assert exact == [f"k{i}" for i in range(1, 12)]
    near = keys(shards, tmp_path / "b", copies="near")
    assert near == [f"k{i}" for i in range(2, 12)]


@pytest.mark.slow
def test_near_copies_keep_the_largest_then_the_best_then_the_first(tmp_path):
    base = draw_image(3, (1024, 768))
    sizes = [(128, 96), (300, 225), (512, 384), (1024, 768), (1024, 768), (1024, 768)]
    scores = [9, 8, 7, 1, 2, 2]
    made = [
        {"key": f"n{i}", "image": base.resize(size), "score": score}
        for i, (size, score) in enumerate(zip(sizes, scores, strict=True))
    ]
    for number in (3, 4, 5):
        made[number]["image"].putpixel((0, 0), (number, 0, 0))  # near duplicates, not the same bytes
    folder = str(tmp_path / "s")
    list(
        write_shards(
            [*made, {"key": "other", "image": draw_image(8, (64, 64)), "score": 0}], folder, per_shard=3
        )
    )
    list(score_shards(folder, ["phash", "sharpness"]))
    assert keys(folder, tmp_path / "a", copies="near") == ["n4", "other"]
    assert keys(folder, tmp_path / "b", copies="near", where=["score != 2"]) == ["n3", "other"]
    assert keys(folder, tmp_path / "c", copies="near", where=["longer < 1000"], by="sharpness") == [
        "n2",
        "other",
    ]


def test_a_limit_per_source_keeps_the_best(shards, tmp_path):
    assert keys(shards, tmp_path / "a", per_source=2) == ["k8", "k9", "k10", "k11"]


def test_a_selection_of_a_selection(shards, tmp_path):
    keys(shards, tmp_path / "ten", best=10)
    assert keys(str(tmp_path / "ten"), tmp_path / "three", best=0.3) == ["k9", "k10", "k11"]
    info = json.loads((tmp_path / "three" / "select.json").read_text())
    assert [step["left"] for step in info["steps"]] == [10, 3]
    row = next(iter(read_source(tmp_path / "three")))
    assert open_row_image(row).size == (48, 48)
    assert row["scores"]["sharpness"] > 0
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == [
        "select.json",
        "selection.parquet",
    ]


def test_the_newest_overlay_takes_precedence(shards, tmp_path):
    import shutil

    copy = str(shutil.copytree(shards, tmp_path / "s"))
    list(apply_rows(copy, [{"key": "k3", "score": 99}, {"key": "k4", "scores": {"clip": 0.3}}], "later"))
    assert keys(copy, tmp_path / "a", best=1.0, where=["clip > 0.2"]) == ["k4"]
    assert keys(copy, tmp_path / "b", best=2) == ["k3", "k11"]
    assert keys(f"{copy}?overlay=scores", tmp_path / "c", best=2) == ["k10", "k11"]


def test_shards_of_other_tools_and_in_other_places(shards, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in filesystem.list_sizes(shards):
        if tar.endswith(".tar"):
            shutil.copy(f"{shards}/{tar}", bare / tar)
    _, table = open_samples(str(bare), captions=True)
    assert len(table) == 12
    assert table["characters"].to_pylist()[3] == [4]
    assert keys(str(bare), tmp_path / "a", where=["characters > 11"]) == ["k11"]
    list(write_shards(rows(), "memory://select-test/s", per_shard=5))
    assert keys("memory://select-test/s", "memory://select-test/best", best=2) == ["k10", "k11"]


def test_impossible_selections_are_errors(shards, tmp_path):
    with pytest.raises(LuminaError, match=r"none of 12 samples remains: width > 500 left 0"):
        select_samples(shards, str(tmp_path / "a"), SelectionSettings(where=["width > 500"]))
    with pytest.raises(UsageError, match=r"expected a fraction up to 1\.0 or a whole number"):
        select_samples(shards, str(tmp_path / "a"), SelectionSettings(best=1.5))
    with pytest.raises(UsageError, match="no 'aesthetics'"):
        select_samples(shards, str(tmp_path / "a"), SelectionSettings(best=0.5, by="aesthetics"))
    with pytest.raises(UsageError, match="not a numeric column"):
        select_samples(shards, str(tmp_path / "a"), SelectionSettings(best=0.5, by="key"))
    with pytest.raises(UsageError, match="holds shards; write the selection to another folder"):
        select_samples(shards, shards, SelectionSettings(best=0.5))
    for words, name, meant in (
        ({"where": ["widht > 5"]}, "widht", "; did you mean 'width'"),
        ({"by": "x9"}, "x9", ""),
    ):
        said = f"samples have no '{name}', only shard, .*score, .*sharpness.*, pixels, aspect.*{meant}"
        with pytest.raises(UsageError, match=said):
            select_samples(shards, shards, SelectionSettings(**words))  # before what is wrong with the place
    keys(shards, tmp_path / "a", best=2)
    with pytest.raises(UsageError, match="the selection that is the source"):
        select_samples(str(tmp_path / "a"), str(tmp_path / "a"), SelectionSettings(best=1), force=True)
    (tmp_path / "a" / "select.json").write_text('{"shards": "gone"}')
    with pytest.raises(LuminaError):
        list(read_source(tmp_path / "a"))


@pytest.mark.parametrize(
    ("text", "best"),
    [("1", 1), ("10", 10), ("1.0", 1.0), ("0.5", 0.5), (".5", 0.5), ("1e-3", 0.001)],
)
def test_a_number_without_a_dot_is_a_count(text, best):
    assert (parse_best(text), type(parse_best(text))) == (best, type(best))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "10.0", "nan", "inf", "1e6", "all", ""])
def test_neither_a_fraction_nor_a_count_is_an_error(text):
    with pytest.raises(UsageError, match=r"expected a fraction up to 1\.0 or a whole number"):
        parse_best(text)


def test_another_selection_is_replaced_only_with_force(shards, tmp_path, capsys):
    place = str(tmp_path / "a")
    words = ["shard", "select", shards, place, "--best", "3"]
    assert run(words) == 0
    before = (tmp_path / "a" / "selection.parquet").read_bytes()
    assert run(words) == 0  # the same again
    assert (tmp_path / "a" / "selection.parquet").read_bytes() == before
    assert run([*words[:-1], "2"]) == 2
    assert "use --force to replace it" in capsys.readouterr().err
    assert run(["shard", "select", f"{shards}?overlay=", *words[3:]]) == 2
    assert len(list(read_source(place))) == 3
    assert run([*words[:-1], "2", "--force"]) == 0
    assert len(list(read_source(place))) == 2


def plain(tmp_path, *more: dict) -> str:
    """Shards of images without scores, with the fields of `more`."""
    made = [{"key": f"k{i}", "image": draw_image(i, (48, 48))} | each for i, each in enumerate(more)]
    list(write_shards(made, str(tmp_path / "plain"), per_shard=2))
    return str(tmp_path / "plain")


def test_a_missing_score_is_replaced_by_the_only_other_one(tmp_path, capsys):
    folder = plain(tmp_path, *[{}] * 4)
    list(score_shards(folder, ["sharpness", "entropy"]))
    best = max(read_source(folder), key=lambda row: row["scores"]["sharpness"])["key"]
    assert run(["shard", "select", folder, str(tmp_path / "a"), "--best", "1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {
        "step": "best by sharpness", "left": 1, "without_value": 0, "instead_of": "score",
    }  # fmt: skip
    assert "no sample has a 'score'; selected the best by sharpness" in err
    assert [row["key"] for row in read_source(str(tmp_path / "a"))] == [best]
    list(apply_rows(folder, [{"key": "k1", "scores": {"aesthetic": 5.0}}], "later"))
    assert run(["shard", "select", folder, str(tmp_path / "b"), "--best", "1"]) == 1
    assert (
        "no sample has 'score'; available: aesthetic, sharpness; choose one with --by"
        in capsys.readouterr().err
    )


def test_entropy_never_replaces_a_missing_score(tmp_path):
    folder = plain(tmp_path, {}, {})
    list(score_shards(folder, ["entropy"]))
    with pytest.raises(LuminaError, match="no sample has 'score' to rank by; available: entropy"):
        select_samples(folder, str(tmp_path / "a"), SelectionSettings(best=1))


@pytest.mark.parametrize("by", ["score", "caption"])
def test_scores_of_captions_are_read_from_the_rows(tmp_path, by):
    means = (0.2, None, 0.9, 0.4)
    said = [{"caption_scores": {"en": {"short": m - 0.1, "tags": m + 0.1}}} if m else {} for m in means]
    folder = plain(tmp_path, *said)
    info = select_samples(folder, str(tmp_path / "a"), SelectionSettings(best=2, by=by, where=["key != k9"]))
    assert info["steps"][-1]["without_value"] == 1
    assert info["steps"][-1]["step"] == "best by caption"
    assert [row["key"] for row in read_source(str(tmp_path / "a"))] == ["k2", "k3"]


def test_a_changed_shard_is_an_error(tmp_path):
    folder = str(tmp_path / "s")
    list(write_shards(rows(), folder, per_shard=5))
    keys(folder, tmp_path / "a", best=2)
    list(write_shards(rows()[:11], folder, per_shard=5, force=True))
    with pytest.raises(LuminaError, match=r"k11 is not what .* selected; rerun `lumina shard select`"):
        list(read_source(tmp_path / "a"))


def test_the_command_line_writes_a_selection(shards, tmp_path, capsys):
    words = ["shard", "select", shards, str(tmp_path / "a"), "--best", "0.5", "--where", "width > 48"]
    assert run([*words, "--no-duplicates", "near", "--distance", "3", "--per-source", "5"]) == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [step["step"] for step in steps] == [
        "samples", "width > 48", "no near copies", "at most 5 of a source", "best by score",
    ]  # fmt: skip
    assert run([*words, "--no-duplicates", "nearly"]) == 2
    assert "choose from exact, near" in capsys.readouterr().err
    assert run(["shard", "cat", str(tmp_path / "a")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == steps[-1]["left"]


def test_two_selections_into_one_folder_at_once_are_refused(shards, tmp_path, lumina):
    dest = tmp_path / "best"
    select_samples(shards, str(dest), SelectionSettings(best=2))
    before = {path.name: path.read_bytes() for path in dest.iterdir()}
    number = lock_folder(str(dest))  # as another process holds it
    for words in ("--best 2", "--best 1 --force", ""):
        code, _, err = lumina(f"shard select {shards} {dest} {words}")
        assert code == 1
        assert f"{dest} is being written by another process; wait for it, or choose another folder" in err
    assert {path.name: path.read_bytes() for path in dest.iterdir()} == before
    os.close(number)
    assert lumina(f"shard select {shards} {dest} --best 1 --force")[0] == 0


def test_a_selection_that_fails_leaves_no_folder(shards, tmp_path):
    with pytest.raises(LuminaError, match="remains"):
        select_samples(shards, str(tmp_path / "none"), SelectionSettings(where=("width > 99999",)))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="holds shards"):
        select_samples(shards, shards, SelectionSettings(best=1))
