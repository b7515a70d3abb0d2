"""Grids: parsing, images of each cell, and sheets."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.sampling.batching import Split
from lumina_cli.core.sampling.output import grid, sheet
from lumina_cli.core.sampling.output.grid import generate_grid
from lumina_cli.core.sampling.output.grid_axes import AXES, list_cells, read_grid
from lumina_cli.core.sampling.output.sheet import GROUND, Sheet, draw_sheet, missing, runs, wrap
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.runner import generate_rows

FAST = {"solver": "euler", "steps": 2}


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


def test_read_grid_parses_axes():
    axes = read_grid("guidance=3,4.5 x calls=10,20 x size=64x48,16:9 × renorm=off,row")
    assert [(axis.name, axis.values) for axis in axes] == [
        ("guidance", (3, 4.5)), ("calls", (10, 20)), ("size", ("64x48", "16:9")), ("renorm", (None, "row")),
    ]  # fmt: skip
    assert axes[0].labels() == ["guidance 3", "guidance 4.5"]
    assert read_grid("guide-until = 0.2, 1")[0].labels() == ["guide until 0.2", "guide until 1"]
    assert len(list_cells(axes)) == 16


EXAMPLES = {
    "solver": "euler",
    "guide": "apg",
    "guide_unit": "steps",
    "cache": "first:0.1",
    "preset": "official",
}
EXAMPLES |= {"system": "base", "size": "64x48", "renorm": "row", "renorm_of": "data"}


@pytest.mark.parametrize("name", AXES)
def test_every_setting_can_be_an_axis(name):
    (axis,) = read_grid(f"{name}={EXAMPLES.get(name, '1')}")
    (cell,) = list_cells([axis])
    assert cell.row_overrides() or cell.request_settings({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidence=3,4", "cannot vary 'guidence' in a grid; did you mean 'guidance'?"),
        ("qqqqq=3", "cannot vary 'qqqqq' in a grid; choose from solver, steps,"),
        (
            "guidance",
            "invalid grid axis 'guidance'; expected NAME=VALUES, such as \"guidance=3,4 x calls=10,20\"",
        ),
        ("", "invalid grid axis ''"),
        ("guidance=3,,4", "the grid has an empty value in 'guidance=3,,4'"),
        ("guidance=", "the grid has an empty value in 'guidance='"),
        ("guidance=3,3", "the grid has guidance=3 twice"),
        (
            "guidance=3 x guidance=4",
            "the grid has 'guidance' twice; write all its values after one guidance=",
        ),
        ("steps=3 x calls=4", "the grid has steps and calls, which are mutually exclusive"),
        ("guidance=much", "guidance must be a number, not 'much'"),
        ("solver=eular", "unknown solver 'eular'; did you mean 'euler'?"),
        ("calls=ten", "calls must be an integer, not 'ten'"),
        ("size=100x64", "size 100x64: width 100 is not a multiple of 16"),
        ("preset=offical", "unknown preset 'offical'; did you mean 'official'?"),
        ("system=reel", "unknown system prompt 'reel'; did you mean 'real'?"),
        ("seed=" + ",".join(map(str, range(401))), "the grid has 401 cells; at most 400 fit on a sheet"),
    ],
)
def test_invalid_grids_are_one_line_errors(text, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        read_grid(text)


def test_cell_values_override_given_settings():
    (cell, _) = list_cells(read_grid("calls=10,20"))
    given = {"plan": {"steps": 5, "guidance": 2.0}, "preset": "diffusers", "system": "base"}
    assert cell.request_settings(given) == {
        "plan": {"calls": 10, "guidance": 2.0}, "preset": "diffusers", "system": "base",
    }  # fmt: skip
    assert given["plan"] == {"steps": 5, "guidance": 2.0}
    assert cell.request_settings({"plan": Plan("euler")})["plan"]["solver"] == "euler"
    (cell,) = list_cells(read_grid("seed=3 x system=base"))
    assert (cell.row_overrides(), cell.request_settings({"plan": FAST})) == (
        {"seed": 3},
        {"plan": FAST, "system": "base"},
    )


def test_each_cell_equals_a_single_run(pipe, tmp_path):
    rows = [{"prompt": "two cups", "tag": 1, "key": "own"}]
    axes = read_grid("guidance=1,6 x calls=2,3")
    drawn = list(generate_grid(rows, axes, pipe, tmp_path / "grid", plan=FAST, seed=5))
    assert [row["cell"] for row in drawn] == [
        {"guidance": g, "calls": c} for g in (1, 6) for c in (2, 3)
    ]  # fmt: skip
    assert {(row["tag"], row["key"], row["seed"]) for row in drawn} == {(1, "own", 5)}
    for row in drawn:
        plan = {"solver": "euler", "guidance": row["cell"]["guidance"], "steps": row["cell"]["calls"]}
        (alone,) = generate_rows(rows, pipe, tmp_path / "alone", plan=plan, seed=5)
        assert open_image(alone["image"]).tobytes() == open_image(row["image"]).tobytes()
    assert len({open_image(row["image"]).tobytes() for row in drawn}) == 4
    assert [row.get("sheet") for row in drawn] == [
        None,
        None,
        None,
        str(tmp_path / "grid" / "own-grid-guidance-1-6-calls-2-3-s5.png"),
    ]
    assert read_metadata(drawn[-1]["sheet"]) == {
        "grid": {"guidance": [1, 6], "calls": [2, 3]},
        "of": "two cups",
        "pictures": [row["image"].rpartition("/")[2] for row in drawn],
    }


def test_existing_grid_is_not_generated_again(pipe, tmp_path, monkeypatch):
    axes = read_grid("seed=1,2")
    first = list(generate_grid([{"prompt": "two cups"}], axes, pipe, tmp_path, plan=FAST))
    monkeypatch.setattr(type(pipe), "generate_batch", lambda *args: pytest.fail("drawn again"))
    again = list(generate_grid([{"prompt": "two cups"}], axes, pipe, tmp_path, plan=FAST))
    assert [row["image"] for row in again] == [row["image"] for row in first]
    assert again[-1]["sheet"] == first[-1]["sheet"] == str(tmp_path / "00000-two-cups-grid-seed-1-2.png")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_grids_of_one_prompt_keep_their_sheets(pipe, tmp_path):
    def draw(axes, **plan):
        rows = [{"prompt": "two cups"}]
        *_, last = generate_grid(rows, read_grid(axes), pipe, tmp_path, plan=FAST | plan)
        return last["sheet"].rpartition("/")[2]

    first, before = draw("guidance=1,6"), files(tmp_path)
    names = [draw("calls=2,3"), draw("guidance=1,6", shift=2.0), draw("guidance=1,6", shift=3.0)]
    stem = "00000-two-cups-grid-guidance-1-6-s0"
    assert [first, *names] == [
        f"{stem}.png", "00000-two-cups-grid-calls-2-3-s0.png", f"{stem}-2.png", f"{stem}-3.png"
    ]  # fmt: skip
    assert before.items() <= files(tmp_path).items()
    after = files(tmp_path)
    assert [draw("guidance=1,6"), draw("guidance=1,6", shift=2.0)] == [f"{stem}.png", f"{stem}-2.png"]
    assert files(tmp_path) == after


SAME = [{"prompt": word, "key": "same"} for word in ("two cups", "a ball", "a car")]


def test_rows_with_equal_keys_share_no_file(pipe, tmp_path):
    drawn = list(generate_grid(SAME, read_grid("guidance=1,6"), pipe, tmp_path, plan=FAST))
    assert len({row["image"] for row in drawn}) == 6
    sheets = [row["sheet"] for row in drawn if "sheet" in row]
    assert [read_metadata(sheet)["of"] for sheet in sheets] == [row["prompt"] for row in SAME]
    assert [read_metadata(row["image"])["prompt"] for row in drawn] == [row["prompt"] for row in drawn]


def test_splits_of_a_grid_use_the_names_of_the_whole(pipe, tmp_path):
    axes, notes = read_grid("guidance=1,6"), []
    parts = [
        list(generate_grid(SAME, axes, pipe, tmp_path / "parts", plan=FAST, split=Split(part, 2)))
        for part in (1, 0)
    ]
    assert [[row["prompt"] for row in part] for part in parts] == [
        ["a ball"] * 2, ["two cups"] * 2 + ["a car"] * 2
    ]  # fmt: skip
    again = {"plan": FAST, "progress": lambda *done, **_: notes.append(done)}
    whole = list(generate_grid(SAME, axes, pipe, tmp_path / "parts", **again))
    assert [row.pop("resumed") for row in whole] == [True] * 6
    order = [row["prompt"] for row in SAME]
    assert sorted(parts[0] + parts[1], key=lambda row: order.index(row["prompt"])) == whole
    assert notes[-1] == (0, 6)
    list(generate_grid(SAME, axes, pipe, tmp_path / "whole", **again))
    assert notes[-1] == (6, 0)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        path.name for path in (tmp_path / "parts").iterdir()
    }


def test_concurrent_run_loses_no_sheet(pipe, tmp_path, monkeypatch):
    axes, draw = read_grid("seed=1,2"), grid.draw_sheet

    def slow(*sheet):
        if not list(tmp_path.glob("*-grid-*")):
            (tmp_path / "00000-two-cups-grid-seed-1-2.png").write_text("somebody's")
        return draw(*sheet)

    monkeypatch.setattr(grid, "draw_sheet", slow)
    *_, last = generate_grid([{"prompt": "two cups"}], axes, pipe, tmp_path, plan=FAST)
    assert last["sheet"].endswith("00000-two-cups-grid-seed-1-2-2.png")
    assert (tmp_path / "00000-two-cups-grid-seed-1-2.png").read_text() == "somebody's"


def test_each_prompt_and_number_has_a_sheet(pipe, tmp_path):
    rows = [{"prompt": "two cups"}, {"prompt": "a ball"}]
    drawn = list(generate_grid(rows, read_grid("size=64,64x48"), pipe, tmp_path, plan=FAST, count=2))
    assert len(drawn) == 8
    sheets = [row["sheet"].rpartition("/")[2] for row in drawn if "sheet" in row]
    assert sheets == [
        "00000-two-cups-grid-size-64-64x48-s0-0.png", "00000-two-cups-grid-size-64-64x48-s0-1.png",
        "00001-a-ball-grid-size-64-64x48-s0-0.png", "00001-a-ball-grid-size-64-64x48-s0-1.png",
    ]  # fmt: skip


def test_notes_of_all_cells_are_reported_once(pipe, tmp_path):
    notes = []
    list(
        generate_grid(
            [{"prompt": "two cups " * 60}], read_grid("seed=1,2"), pipe, tmp_path, notes.append, plan=FAST
        )
    )
    assert len([line for line in notes if "too long" in line]) == 1


def test_notes_name_their_row(pipe, tmp_path):
    notes, rows = [], [{"prompt": "a ball"}, {"prompt": "two cups " * 60}]
    list(generate_grid(rows, read_grid("seed=1,2"), pipe, tmp_path, notes.append, plan=FAST))
    assert [line.partition(":")[0] for line in notes if "too long" in line] == ["row 2"]


def test_invalid_plan_is_rejected_before_generating(pipe, tmp_path):
    with pytest.raises(UsageError, match="steps must be an integer of at least 1, and at most 10000, not 0"):
        next(generate_grid([{"prompt": "a"}], read_grid("guidance=1,2"), pipe, tmp_path, plan={"steps": 0}))
    assert list(tmp_path.iterdir()) == []


COLOURS = ["red", "lime", "blue", "magenta", "cyan", "yellow"]


def test_sheet_shows_each_image_uncropped_in_its_cell():
    pictures = [Image.new("RGB", (128, 128), colour) for colour in COLOURS]
    image, lost = draw_sheet(Sheet("a cup", "seed 7", ["a", "b", "c"], ["one", "two"]), pictures)
    assert lost == ""
    pixels, places = np.asarray(image), []
    for picture in pictures:
        rows, columns = np.nonzero((pixels == picture.getpixel((0, 0))).all(-1))
        assert len(rows) == 128 * 128
        places.append((rows.min(), columns.min()))
    assert places == sorted(places)
    assert len({top for top, _ in places}) == 2
    gaps = {places[1][1] - places[0][1], places[2][1] - places[1][1], places[3][0] - places[0][0]}
    assert len(gaps) == 1
    right = image.width - places[2][1] - 128
    assert image.height - places[3][0] - 128 == right
    edge = np.concatenate([pixels[: right // 2].reshape(-1, 3), pixels[:, : right // 2].reshape(-1, 3)])
    assert {tuple(one) for one in edge.tolist()} == {Image.new("RGB", (1, 1), GROUND).getpixel((0, 0))}


@pytest.mark.parametrize("size", [(16, 16), (1024, 768), (48, 128)])
def test_sheet_fits_images_of_any_size(size):
    pictures = [Image.new("RGB", size, "red"), Image.new("RGB", size[::-1], "red")]
    image, _ = draw_sheet(Sheet("", "", ["a", "b"]), pictures)
    red = (np.asarray(image) == (255, 0, 0)).all(-1)
    assert red.any(1).sum() >= 64
    assert max(image.size) <= 1600


def test_text_is_wrapped_to_the_width():
    lines = wrap("a red car left of a blue ball on a grey floor", 120, 16)
    assert len(lines) > 2
    assert " ".join(lines) == "a red car left of a blue ball on a grey floor"
    assert "".join(wrap("x" * 200, 120, 16)) == "x" * 200


def test_characters_without_a_font_are_reported_and_omitted(monkeypatch):
    monkeypatch.setattr(sheet, "found_fonts", lambda: ("",))
    sheet.font_of.cache_clear()
    try:
        assert missing("a 红色 cup, 红") == "红色"
        assert "".join(run for _, run in runs("a 红色 cup", 16)).split() == ["a", "cup"]
        image, lost = draw_sheet(Sheet("红色", "", ["a"]), [Image.new("RGB", (64, 64))])
        assert lost == "红色"
        assert (np.asarray(image)[:30] == Image.new("RGB", (1, 1), GROUND).getpixel((0, 0))).all()
    finally:
        sheet.font_of.cache_clear()


def test_cells_of_grid_rows_are_json(pipe, tmp_path):
    drawn = list(generate_grid([{"prompt": "a"}], read_grid("renorm=off,row"), pipe, tmp_path, plan=FAST))
    assert json.loads(json.dumps(drawn[0]["cell"])) == {"renorm": None}
