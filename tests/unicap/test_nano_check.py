"""The nano engine checks its captions, and rejects those of images that are not its rendered scenes."""

import json
from pathlib import Path

import pytest
import sklearn.datasets
from PIL import Image

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight crops of two photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        image = Image.open(PHOTOS / f"{name}.jpg")
        for number in range(4):
            x, y = 200 * (number % 2), 150 * (number // 2)
            image.crop((x, y, x + 360, y + 240)).save(folder / f"{name}{number}.png")
    return folder


def test_most_captions_of_photographs_are_rejected_with_a_reason(lumina, photos):
    code, rows, err = lumina(photos, "--engine", "nano", "--levels", "short", "--retries", 0)
    rejected = [row["rejected_captions"][0] for row in rows if "rejected_captions" in row]
    assert code == 3
    assert len(rejected) >= 6
    assert {each["code"] for each in rejected} == {"not there"}
    assert all("names objects that are not detected" in each["reason"] for each in rejected)
    assert err[-1].endswith(
        "the nano engine only describes rendered scenes: choose another --engine for other images"
    )


def test_rendered_scenes_are_captioned_without_scores(lumina):
    code, rows, _ = lumina("nano:6?seed=3", "--engine", "nano", "--levels", "short", "--retries", 0)
    assert (code, len(rows)) == (0, 6)
    assert not any("caption_scores" in row or "rejected_captions" in row for row in rows)
    assert {row["captioned_by"]["en"]["short"] for row in rows} == {"nano"}


def test_a_score_that_the_user_names_replaces_the_check(lumina, photos):
    words = (photos / "china0.png", "--engine", "nano", "--levels", "short", "--retries", 0)
    code, (row,), _ = lumina(*words, "--score", "nano@0")
    assert code == 0
    assert row["caption_scores"]["en"]["short"] < 1


def test_captions_name_the_model_that_the_endpoint_offers(lumina, photos):
    from local_endpoint import Endpoint, said

    endpoint = Endpoint(lambda *_: (200, said("a red car left of a ball")))
    words = (photos / "china0.png", "--engine", "openai", "--endpoint", endpoint.url, "--levels", "short")
    try:
        _, (found,), _ = lumina(*words)
        _, (named,), _ = lumina(*words, "--model", "big")
    finally:
        endpoint.close()
    assert found["captioned_by"] == {"en": {"short": "openai:only"}}
    assert named["captioned_by"] == {"en": {"short": "openai:big"}}


def test_the_summary_separates_captions_from_questions(photos, capsys):
    from local_endpoint import Endpoint, said

    from lumina_cli.cli.app import run

    (photos / "flower0.txt").write_text("A flower that a person described")
    seen = set()

    def reply(_, request):
        url = json.dumps(request["messages"][0]["content"][0])
        first = url not in seen
        seen.add(url)
        return 200, said("" if first else "a red car left of a ball")

    endpoint = Endpoint(reply)
    words = (
        "--engine",
        "openai",
        "--endpoint",
        endpoint.url,
        "--levels",
        "short",
        "--batch",
        1,
        "--retries",
        1,
    )
    try:
        code = run(["caption", *map(str, (photos, *words, "--out", photos.parent / "rows.jsonl"))])
    finally:
        endpoint.close()
        (photos / "flower0.txt").unlink()
    out, err = capsys.readouterr()
    (stats,) = map(json.loads, out.splitlines())
    counts = {name: stats.get(name) for name in ("captions", "requested", "kept", "questions", "retries")}
    assert (code, counts) == (0, {"captions": 7, "requested": 7, "kept": 1, "questions": 14, "retries": 7})
    assert "8 of 8 images, 7 captions, 1 existing captions kept (--replace replaces them)" in err
    assert "7 of them retries" in err
