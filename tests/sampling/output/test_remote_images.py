"""Images, grids and evaluations on a remote file system: in the memory of this process."""

import json

import fsspec
import pytest

from lumina_cli.core.images.io import read_metadata
from lumina_cli.core.io.remote import RemotePath, to_path

SETTINGS = "--model nano --steps 1 --size 64"


def files(folder: str) -> dict[str, bytes]:
    """Return {name: content} of the files below a folder in memory."""
    system = fsspec.filesystem("memory")
    return {path.removeprefix(folder): system.cat_file(path) for path in system.find(folder)}


def test_images_at_a_url_are_those_of_a_folder_and_are_not_generated_again(lumina, tmp_path):
    line = f'sample "a red ball" "a blue cup" --count 2 {SETTINGS} --out'
    assert lumina(f"{line} {tmp_path}/images")[0] == 0
    code, rows, err = lumina(f"{line} memory://remote/images")
    assert (code, err) == (0, "")
    assert [row["image"].rpartition("/")[0] for row in rows] == ["memory://remote/images"] * 4
    local = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert files("/remote/images") == local
    code, again, _ = lumina(f"{line} memory://remote/images")
    assert [row["resumed"] for row in again] == [True] * 4
    fsspec.filesystem("memory").rm("/remote/images/00001-a-blue-cup-s0-0.png")
    code, again, _ = lumina(f"{line} memory://remote/images")
    assert [row.get("resumed", False) for row in again] == [True, True, False, True]
    assert files("/remote/images") == local
    assert not (tmp_path / "memory:").exists()


def test_other_images_of_the_same_name_are_kept_at_a_url(lumina):
    for seed, steps in ((1, 1), (1, 2), (1, 2)):
        code, rows, _ = lumina(
            f'sample "a cat" --model nano --size 64 --seed {seed} --steps {steps} --out memory://remote/twice'
        )
        assert code == 0
    assert rows[0]["resumed"]
    assert sorted(files("/remote/twice")) == ["/00000-a-cat-s1-2.png", "/00000-a-cat-s1.png"]
    assert read_metadata(RemotePath(rows[0]["image"]))["plan"]["steps"] == 2


def test_a_grid_is_written_to_a_url(lumina):
    code, rows, _ = lumina(f'sample "a cat" {SETTINGS} --grid "guidance=1,4" --out memory://remote/grid')
    assert code == 0
    assert all(str(row["image"]).startswith("memory://remote/grid/") for row in rows)
    assert len(files("/remote/grid")) == 3


@pytest.mark.parametrize("option", ["--gallery", "--attention cat"])
def test_pages_and_maps_need_a_local_folder(lumina, option):
    code, _, err = lumina(f'sample "a cat" {SETTINGS} {option} --out memory://remote/refused')
    assert code == 2
    assert "--out memory://remote/refused: --gallery and --attention need a folder on this machine" in err
    assert files("/remote/refused") == {}


def test_scores_at_a_url_are_those_of_a_folder(lumina, tmp_path):
    line = "eval geneval --ceiling --per-task 1 --pictures 1 --out"
    code, _, _ = lumina(f"{line} {tmp_path}/scores")
    assert code == 0
    code, rows, _ = lumina(f"{line} memory://remote/scores")
    assert code == 0
    local = {
        f"/{path.relative_to(tmp_path / 'scores')}": path.read_bytes()
        for path in (tmp_path / "scores").rglob("*.*")
    }
    found = files("/remote/scores")
    assert found.keys() == local.keys()
    assert all(found[name] == local[name] for name in local if name != "/rows.jsonl")
    assert found["/rows.jsonl"].decode() == local["/rows.jsonl"].decode().replace(
        str(tmp_path), "memory://remote"
    )
    code, again, _ = lumina("eval geneval --images memory://remote/scores")
    assert code == 0
    assert [row.get("correct") for row in again] == [row.get("correct") for row in rows]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ('sample "a cat" --model nano --workers 4', "--workers 4: must be ray or ray:N"),
        (
            'sample "a cat" --model nano --workers ray:x',
            "--workers ray:x: must be a number of at least 1, ray",
        ),
        ('sample "a cat" --model nano --workers ray --grid steps=1,2', "cannot be combined with --grid"),
        ('sample "a cat" --model nano --workers ray --attention cat', "cannot be combined with --attention"),
        ("sample --from x.png --workers ray:2", "--workers ray:2 cannot be combined with --from"),
        ("eval geneval --images x --workers ray", "--workers ray cannot be combined with --images"),
        ("eval geneval --model nano --workers 2", "--workers 2: must be ray or ray:N"),
    ],
)
def test_workers_of_commands_that_run_in_one_process(lumina, command, message):
    code, _, err = lumina(command)
    assert code == 2
    assert message in err


def test_locations_become_paths(tmp_path):
    assert to_path(tmp_path) == tmp_path
    assert to_path(f"file://{tmp_path}") == tmp_path
    place = to_path("s3://bucket/images") / "a-2.png"
    assert (place.name, place.stem, place.suffix) == ("a-2.png", "a-2", ".png")
    assert json.dumps(str(place)) == '"s3://bucket/images/a-2.png"'
