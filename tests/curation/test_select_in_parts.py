"""Selecting in parts equals a plain selection among all rows in memory, for parts of any size."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from lumina_cli.core.curation.sample_table import open_samples
from lumina_cli.core.curation.select import SelectionSettings, select_samples
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.manifest import read_batches, write_row_table

COUNT = 211


def made_up(seed: int) -> list[dict]:
    """Rows of a manifest: scores with ties and gaps, copies, sources, shards of one to forty samples."""
    random = np.random.default_rng(seed)
    ends = np.cumsum(random.integers(1, 40, COUNT))
    rows = []
    for i in range(COUNT):
        digest = f"{int(random.integers(1, 60)):02x}" * 32 if random.random() < 0.9 else None
        characters = random.integers(1, 90, random.integers(0, 3)).tolist()
        row = {
            "shard": f"{int(np.searchsorted(ends, i, 'right')):06d}.tar",
            "key": f"k{i}",
            "image": f"k{i}.jpg",
        }
        row |= {"offset": 512, "length": 9, "row_offset": 0, "row_length": 0, "sha256": digest, "notes": []}
        row |= {"width": int(random.integers(1, 9)) * 64, "height": 256, "characters": characters}
        row |= {"languages": ["en"] * len(characters), "levels": ["short", "tags"][: len(characters)]}
        row |= {"score": maybe(random, 6), "score_fine": maybe(random, 5)}
        rows.append(row | {"source": [None, "a", "b", "c"][random.integers(0, 4)], "origin": None})
    return rows


def maybe(random: np.random.Generator, most: int) -> float | None:
    return float(random.integers(0, most)) if random.random() < 0.8 else None


def write_overlay(folder, name: str, rows: list[dict], values: list[dict]) -> None:
    """An overlay of values, as `lumina shard score` writes it."""
    import pyarrow as pa

    place = folder / "overlays" / name / "0001"
    place.mkdir(parents=True)
    types = {"shard": pa.string(), "key": pa.string(), "picture": pa.string(), "score": pa.float64()}
    types |= {"score_fine": pa.float64(), "hash_phash": pa.string()}
    lines = [
        {"shard": row["shard"], "key": row["key"], "picture": row["sha256"] or "512+9"} | value
        for row, value in zip(rows, values, strict=True)
        if value
    ]
    write_row_table(str(place / "values.parquet"), lines, pa.schema(list(types.items())))
    info = {"name": name, "version": "0001", "settings": {}, "members": ["json"], "fields": ["scores"]}
    (place / "overlay.json").write_text(json.dumps(info))


@pytest.fixture(params=range(3))
def pool(request, tmp_path, monkeypatch) -> tuple[str, list[dict]]:
    """A folder of synthetic shards with two overlays, and the values of each sample."""
    monkeypatch.setattr(manifest, "GROUP", (17, 64, 1000)[request.param])
    rows, random = made_up(request.param), np.random.default_rng(100 + request.param)
    folder = tmp_path / "s"
    folder.mkdir()
    write_row_table(str(folder / "manifest.parquet"), rows, manifest.manifest_schema(["fine"]))
    for shard in {row["shard"] for row in rows}:
        (folder / shard).touch()
    first = [
        {"hash_phash": f"{int(random.integers(0, 300)):016x}"} if random.random() < 0.8 else {} for _ in rows
    ]
    second = [{"score": float(random.integers(0, 9))} if random.random() < 0.3 else {} for _ in rows]
    for value in second:
        if random.random() < 0.2:
            value["score_fine"] = float(random.integers(0, 9))
    write_overlay(folder, "hashes", rows, first)
    write_overlay(folder, "later", rows, second)
    known = []
    for row, one, two in zip(rows, first, second, strict=True):
        score, fine = two.get("score", row["score"]), two.get("score_fine", row["score_fine"])
        known.append(row | {"score": score, "fine": fine, "phash": one.get("hash_phash")})
    return str(folder), known


def chosen(rows: list[dict], choice: SelectionSettings) -> tuple[list[dict], list[int]]:
    """Return the rows that settings select, and the samples left by each step: in memory, by definition."""
    left, counts = list(rows), [len(rows)]
    for text in choice.where:
        name, operator, value = text.split()
        values = [max(row["characters"], default=None) if name == "characters" else row[name] for row in left]
        test = {"<": float(value).__gt__, ">=": float(value).__le__}[operator]
        left = [row for row, found in zip(left, values, strict=True) if found is not None and test(found)]
        counts.append(len(left))
    best = lambda row: -np.inf if row[choice.by] is None else row[choice.by]  # noqa: E731
    if choice.copies:
        groups = grouped(left, choice)
        area = lambda row: row["width"] * row["height"] if choice.copies == "near" else 0  # noqa: E731
        first = lambda row: (area(row), best(row))  # noqa: E731
        left = [row for row in left if row is max((other for other in groups[row["key"]]), key=first)]
        counts.append(len(left))
    if choice.per_source is not None:
        kept = set()
        for source in {row["source"] for row in left}:
            own = sorted((row for row in left if row["source"] == source), key=lambda row: -best(row))
            kept |= {row["key"] for row in own[: choice.per_source]}
        left = [row for row in left if row["key"] in kept]
        counts.append(len(left))
    if choice.best is not None:
        share = not isinstance(choice.best, int)
        count = max(1, round(choice.best * len(left))) if share else choice.best
        own = sorted((row for row in left if row[choice.by] is not None), key=lambda row: -best(row))
        kept = {row["key"] for row in own[:count]}
        left = [row for row in left if row["key"] in kept]
        counts.append(len(left))
    return left, counts


def grouped(rows: list[dict], choice: SelectionSettings) -> dict[str, list[dict]]:
    """Return the groups of rows by key, in their order."""

    def alike(a: dict, b: dict) -> bool:
        if choice.copies == "near" and (a["phash"] or b["phash"]):
            both = a["phash"] and b["phash"]
            return bool(both) and (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count() <= choice.distance
        return a is b or (a["sha256"] is not None and a["sha256"] == b["sha256"])

    groups = {row["key"]: [row] for row in rows}
    for at, row in enumerate(rows):
        for other in rows[:at]:
            if alike(row, other) and groups[row["key"]] is not groups[other["key"]]:
                groups[row["key"]] += groups[other["key"]]
                groups |= {each["key"]: groups[row["key"]] for each in groups[row["key"]]}
    order = {row["key"]: at for at, row in enumerate(rows)}
    return {key: sorted(group, key=lambda row: order[row["key"]]) for key, group in groups.items()}


CHOICES = [
    SelectionSettings(best=0.1),
    SelectionSettings(best=1),
    SelectionSettings(best=150),
    SelectionSettings(best=1.0, by="fine"),
    SelectionSettings(best=0.3, by="width", where=("score < 4", "characters < 70")),
    SelectionSettings(where=("characters >= 20", "fine >= 1")),
    SelectionSettings(copies="exact"),
    SelectionSettings(copies="exact", best=40, by="fine"),
    SelectionSettings(copies="near", distance=1, best=0.5),
    SelectionSettings(copies="near", distance=1, per_source=20, by="fine", where=("width >= 128",)),
    SelectionSettings(per_source=7),
    SelectionSettings(per_source=11, best=0.25, by="fine"),
]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: ",".join(
    f"{name}={value}" for name, value in asdict(choice).items() if value not in (None, (), "score", 4)
))  # fmt: skip
def test_parts_select_the_same_samples_as_all_rows(pool, tmp_path, choice):
    folder, rows = pool
    wanted, counts = chosen(rows, choice)
    info = select_samples(folder, str(tmp_path / "a"), choice)
    assert [step["left"] for step in info["steps"]] == counts
    check(tmp_path / "a", wanted, choice.by)
    again = SelectionSettings(best=0.4, by="width", copies="exact")
    wanted, counts = chosen(wanted, again)
    info = select_samples(str(tmp_path / "a"), str(tmp_path / "b"), again)
    assert [step["left"] for step in info["steps"]] == counts
    check(tmp_path / "b", wanted, "width")
    assert open_samples(str(tmp_path / "b"), captions=True)[1]["characters"].to_pylist() == [
        row["characters"] for row in wanted
    ]


def check(folder, rows: list[dict], by: str) -> None:
    """The table of a selection contains the location of its samples and the value that ranked them."""
    names = ("shard", "key", "image", "sha256")
    place = str(folder / "selection.parquet")
    found = [row for batch in read_batches(place, None, "selection") for row in batch.to_pylist()]
    assert found == [{name: row[name] for name in names} | {"value": row[by]} for row in rows]


def test_a_selection_of_missing_samples_is_an_error(pool, tmp_path):
    folder, rows = pool
    select_samples(folder, str(tmp_path / "a"), SelectionSettings(best=20))
    write_row_table(f"{folder}/manifest.parquet", rows[:30], manifest.manifest_schema(["fine"]))
    with pytest.raises(LuminaError, match="selected samples that its shards no longer contain"):
        select_samples(str(tmp_path / "a"), str(tmp_path / "b"), SelectionSettings(best=1))
