"""GenEval: official prompts, layout, rules, scores and the nano tasks."""

import errno
import hashlib
import json
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from PIL import Image

from lumina_cli.core.errors import GateFailed, LuminaError, UsageError
from lumina_cli.core.evals.geneval.ground_truth import ground_truth_generator, ground_truth_scene
from lumina_cli.core.evals.geneval.layout import ImageGenerator, generate_images, scan_images
from lumina_cli.core.evals.geneval.prompts import POSITIONS, TAGS, nano_prompts, official_prompts
from lumina_cli.core.evals.geneval.rules import GenEval, check, group_detections, overlap, relations
from lumina_cli.core.evals.report import Gate, compare, summary_table, write_scores
from lumina_cli.core.images.io import save_image
from lumina_cli.core.nano.rendering.renderer import render
from lumina_cli.core.nano.scene import KINDS, TINTS, Scene, held_out_pairs, held_out_triples
from lumina_cli.core.registry import JUDGES
from lumina_cli.core.weights.fingerprint import fingerprint


class Seen(NamedTuple):
    kind: str
    tint: str = "red"
    score: float = 0.95
    box: tuple = (0, 0, 10, 10)


class FakeJudge:
    """Says of a picture what the script for its top left pixel's red value says."""

    name = "nano"
    kinds, tints = KINDS, TINTS
    thresholds = {"default": 0.3, "counting": 0.9}  # noqa: RUF012

    def __init__(self, script=None):
        self.script = script or {}

    def detect(self, pictures):
        return [self.script.get(picture.getpixel((0, 0))[0], []) for picture in pictures]


def picture(red=0):
    return Image.new("RGB", (16, 16), (red, 0, 0))


# --- prompts


def test_official_prompts_equal_the_official_file():
    text = "".join(json.dumps(row) + "\n" for row in official_prompts())
    digest = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()) == (85209, digest)


def test_official_prompts_are_sorted_by_task():
    tags = [row["tag"] for row in official_prompts()]
    starts = {tag: (tags.index(tag), tags.count(tag)) for tag in TAGS}
    assert starts == {
        "single_object": (0, 80),
        "two_object": (80, 99),
        "counting": (179, 80),
        "colors": (259, 94),
        "position": (353, 100),
        "color_attr": (453, 100),
    }


def test_official_positions_and_counts_have_the_published_statistics():
    rows = official_prompts()
    positions = Counter(row["include"][1]["position"][0] for row in rows if row["tag"] == "position")
    counts = Counter(row["include"][0]["count"] for row in rows if row["tag"] == "counting")
    assert positions == {"below": 28, "right of": 27, "above": 26, "left of": 19}
    assert counts == {2: 26, 3: 28, 4: 26}


@pytest.mark.parametrize(
    ("index", "prompt"),
    [
        (0, "a photo of a bench"),
        (80, "a photo of a bench and a sports ball"),
        (179, "a photo of two clocks"),
        (259, "a photo of a blue fire hydrant"),
        (353, "a photo of a dog right of a teddy bear"),
        (453, "a photo of a purple wine glass and a black apple"),
    ],
)
def test_official_prompts_quoted_in_papers(index, prompt):
    assert official_prompts()[index]["prompt"] == prompt


def test_official_prompts_keep_wrong_plurals_and_have_no_duplicates():
    rows = official_prompts()
    assert "a photo of four benchs" in {row["prompt"] for row in rows}
    assert len({json.dumps(row) for row in rows}) == len(rows) == 553


def test_only_counting_prompts_exclude_a_larger_count():
    for row in official_prompts() + nano_prompts(10):
        if row["tag"] == "counting":
            (include,), (exclude,) = row["include"], row["exclude"]
            assert exclude == {"class": include["class"], "count": include["count"] + 1}
        else:
            assert "exclude" not in row


def test_nano_prompts_are_the_same_scenes_in_every_language():
    rows = {language: nano_prompts(12, language, seed=4) for language in ("en", "zh", "ja", "ru", "de")}
    assert [len(part) for part in rows.values()] == [72] * 5
    for part in rows.values():
        assert [row["include"] for row in part] == [row["include"] for row in rows["en"]]
    assert rows["zh"][0]["prompt"] != rows["en"][0]["prompt"]
    assert all(row["prompt"] for part in rows.values() for row in part)


def test_nano_prompts_depend_on_the_seed_and_have_the_requested_number():
    assert nano_prompts(5, seed=1) == nano_prompts(5, seed=1) != nano_prompts(5, seed=2)
    assert Counter(row["tag"] for row in nano_prompts(40)) == dict.fromkeys(TAGS, 40)
    assert len({row["prompt"] for row in nano_prompts(40) if row["tag"] == "single_object"}) == len(KINDS)


def combinations(row):
    """The (tint, kind) pairs and the (kind, relation, kind) triple that a row names."""
    pairs = [(item["color"], item["class"]) for item in row["include"] if "color" in item]
    triples = []
    if row["tag"] == "position":
        target, placed = row["include"]
        triples = [(placed["class"], placed["position"][0], target["class"])]
    return pairs, triples


def test_nano_test_split_has_no_held_out_combination():
    for row in nano_prompts(150):
        pairs, triples = combinations(row)
        assert not set(pairs) & set(held_out_pairs())
        assert not set(triples) & set(held_out_triples())
        assert row["held_out"] is False


def test_nano_held_out_split_has_only_held_out_combinations():
    rows = nano_prompts(60, split="held-out")
    assert {row["tag"] for row in rows} == {"colors", "position", "color_attr"}
    for row in rows:
        pairs, triples = combinations(row)
        assert set(pairs) <= set(held_out_pairs())
        assert set(triples) <= set(held_out_triples())
        assert pairs or triples
        assert row["held_out"] is True
        assert all(triple[1] in POSITIONS for triple in triples)


def test_unknown_prompt_settings_are_rejected():
    with pytest.raises(UsageError, match="unknown split 'train'"):
        nano_prompts(split="train")
    with pytest.raises(UsageError, match="unknown language 'fr'"):
        nano_prompts(language="fr")
    with pytest.raises(UsageError, match="at least 1"):
        nano_prompts(0)
    with pytest.raises(UsageError, match="unknown prompts 'coco'"):
        GenEval().prompts("coco")
    with pytest.raises(UsageError, match="official prompts are English"):
        GenEval().prompts("official", languages=("de",))


def test_ground_truth_scenes_contain_the_objects_of_their_prompts():
    for index, row in enumerate(nano_prompts(10)):
        scene = ground_truth_scene(row, 0, index)
        assert not {(thing.tint, thing.kind) for thing in scene.things} & set(held_out_pairs())
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
        wanted = Counter({item["class"]: item["count"] for item in row["include"]})
        assert Counter(thing.kind for thing in scene.things) == wanted
        for item in row["include"]:
            tints = {thing.tint for thing in scene.things if thing.kind == item["class"]}
            assert "color" not in item or tints == {item["color"]}


def test_ground_truth_scenes_have_the_requested_positions():
    for index, row in enumerate(row for row in nano_prompts(20) if row["tag"] == "position"):
        first, second = ground_truth_scene(row, 0, index).things
        relation = row["include"][1]["position"][0]
        assert first.kind == row["include"][1]["class"]
        apart = {"left of": second.x - first.x, "right of": first.x - second.x}
        apart |= {"above": first.y - second.y, "below": second.y - first.y}
        assert apart[relation] > 0.5


def test_ground_truth_images_depend_on_seed_and_index():
    rows = nano_prompts(1)[:2]
    first, again = (ground_truth_generator(seed=3, size=32).generate(rows, [0, 1000]) for _ in range(2))
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]
    assert ground_truth_generator(seed=3, size=32).generate(rows[:1], [1])[0].tobytes() != first[0].tobytes()


def boxes_of(picture, scene):
    """What a judge without faults would see: the bounding boxes of the things' true masks."""
    for thing, mask in zip(scene.things, picture.masks, strict=True):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        yield Seen(thing.kind, thing.tint, 0.99, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


@pytest.mark.slow
def test_a_perfect_judge_accepts_every_ground_truth_image():
    rows = nano_prompts(4) + nano_prompts(4, split="held-out")
    scenes = [ground_truth_scene(row, 1, index) for index, row in enumerate(rows)]
    for row, scene, picture in zip(rows, scenes, render(scenes, size=64), strict=True):
        assert check(group_detections(boxes_of(picture, scene), 0.9), row) == (True, ""), row["prompt"]


# --- rules


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 100, 100), (60, 0, 160, 100), {"left of"}),
        ((0, 0, 100, 100), (40, 0, 140, 100), set()),
        ((0, 0, 100, 100), (41, 0, 141, 100), {"left of"}),
        ((0, 0, 100, 100), (200, 200, 300, 300), {"above", "left of"}),
        ((300, 100, 400, 200), (300, 100, 400, 200), set()),
        ((0, 0, 100, 100), (300, 100, 400, 200), {"left of"}),
        ((0, 0, 50, 50), (100, 90, 150, 140), {"above", "left of"}),
        ((0, 300, 100, 400), (0, 0, 100, 100), {"below"}),
        ((0, 0, 512, 512), (200, 0, 300, 100), {"below"}),
    ],
)
def test_relations_agree_with_the_official_function(a, b, expected):
    assert relations(a, b) == expected


@pytest.mark.parametrize(("shift", "expected"), [(60, 0.254658), (40, 0.432624), (41, 0.422535)])
def test_overlap_agrees_with_the_official_function(shift, expected):
    assert overlap((0, 0, 100, 100), (shift, 0, shift + 100, 100)) == pytest.approx(expected, abs=1e-6)


def test_overlap_of_disjoint_boxes_is_zero():
    assert overlap((0, 0, 10, 10), (50, 50, 60, 60)) == 0


def test_detections_exceed_the_threshold_and_are_sorted_by_confidence():
    found = [Seen("car", score=0.3), Seen("car", score=0.31), Seen("car", score=0.8), Seen("cup", score=0.2)]
    seen = group_detections(found, 0.3)
    assert {kind: [thing.score for thing in things] for kind, things in seen.items()} == {"car": [0.8, 0.31]}


def test_at_most_sixteen_detections_of_a_class_are_kept():
    assert len(group_detections([Seen("car")] * 20 + [Seen("cup")], 0.3)["car"]) == 16


def test_overlapping_detections_are_kept_by_default():
    found = [
        Seen("car", score=0.9),
        Seen("car", score=0.8, box=(1, 0, 11, 10)),
        Seen("car", score=0.7, box=(50, 0, 60, 10)),
    ]
    assert len(group_detections(found, 0.3)["car"]) == 3
    assert [thing.score for thing in group_detections(found, 0.3, max_overlap=0.5)["car"]] == [0.9, 0.7]


LEFT, RIGHT = (0, 40, 40, 80), (80, 40, 120, 80)
PLACED = [{"class": "cup", "count": 1}, {"class": "car", "count": 1, "position": ["left of", 0]}]
COUNTED = {"include": [{"class": "car", "count": 3}], "exclude": [{"class": "car", "count": 4}]}
RULES = [
    ("single_object", {"include": [{"class": "car", "count": 1}]}, [Seen("car")], ""),
    ("single_object", {"include": [{"class": "car", "count": 1}]}, [Seen("car"), Seen("car")], ""),
    ("single_object", {"include": [{"class": "car", "count": 1}]}, [Seen("cup")], "expected car>=1, found 0"),
    ("single_object", {"include": [{"class": "car", "count": 1}]}, [], "expected car>=1, found 0"),
    (
        "two_object",
        {"include": [{"class": "car", "count": 1}, {"class": "cup", "count": 1}]},
        [Seen("car"), Seen("cup")],
        "",
    ),
    (
        "two_object",
        {"include": [{"class": "car", "count": 1}, {"class": "cup", "count": 1}]},
        [],
        "expected car>=1, found 0\nexpected cup>=1, found 0",
    ),
    ("counting", COUNTED, [Seen("car")] * 3, ""),
    ("counting", COUNTED, [Seen("car")] * 2, "expected car>=3, found 2"),
    ("counting", COUNTED, [Seen("car")] * 5, "expected car<4, found 5"),
    ("colors", {"include": [{"class": "car", "count": 1, "color": "red"}]}, [Seen("car")], ""),
    (
        "colors",  # only the most confident car is looked at
        {"include": [{"class": "car", "count": 1, "color": "red"}]},
        [Seen("car", "red", 0.5), Seen("car", "blue", 0.9)],
        "expected red car>=1, found 1 blue",
    ),
    ("position", {"include": PLACED}, [Seen("car", box=LEFT), Seen("cup", box=RIGHT)], ""),
    (
        "position",
        {"include": PLACED},
        [Seen("car", box=RIGHT), Seen("cup", box=LEFT)],
        "expected car left of cup, found right of",
    ),
    (
        "position",
        {"include": PLACED},
        [Seen("car"), Seen("cup")],
        "expected car left of cup, found neither side",
    ),
    (
        "position",
        {"include": PLACED},
        [Seen("car")],
        "expected cup>=1, found 0\nno cup for car to be left of",
    ),
    ("position", {"include": PLACED}, [Seen("cup")], "expected car>=1, found 0"),
    (
        "color_attr",
        {
            "include": [
                {"class": "car", "count": 1, "color": "red"},
                {"class": "cup", "count": 1, "color": "blue"},
            ]
        },
        [Seen("car", "red"), Seen("cup", "blue")],
        "",
    ),
    (
        "color_attr",
        {
            "include": [
                {"class": "car", "count": 1, "color": "red"},
                {"class": "cup", "count": 1, "color": "blue"},
            ]
        },
        [Seen("car", "blue"), Seen("cup", "red")],
        "expected red car>=1, found 1 blue\nexpected blue cup>=1, found 1 red",
    ),
]


@pytest.mark.parametrize(("tag", "row", "found", "reason"), RULES)
def test_rules(tag, row, found, reason):
    assert check(group_detections(found, 0.3), {"tag": tag, **row}) == (not reason, reason)


def test_a_target_of_the_wrong_color_counts_as_missing():
    """A clause that failed, for whatever reason, leaves nothing to stand beside."""
    include = [{"class": "cup", "count": 1, "color": "blue"}, PLACED[1]]
    found = group_detections([Seen("cup", "red", box=RIGHT), Seen("car", box=LEFT)], 0.3)
    assert check(found, {"include": include})[1].endswith("no cup for car to be left of")


# --- the nano judge


def test_the_nano_judge_uses_the_thresholds_of_its_detector(monkeypatch, tmp_path):
    detector = SimpleNamespace(
        thresholds={"counting": 0.6}, ceiling={"all": 0.99}, detect=lambda pictures: "seen"
    )
    monkeypatch.setattr("lumina_cli.core.evals.judges.nano.load_detector", lambda folder: detector)
    judge = JUDGES.load("nano")(tmp_path)
    assert judge.thresholds == {"default": 0.3, "counting": 0.6}
    assert (judge.name, judge.kinds, judge.tints, judge.ceiling) == ("nano", KINDS, TINTS, {"all": 0.99})
    assert judge.detect([picture()]) == "seen"


def test_a_missing_detector_is_reported(tmp_path):
    with pytest.raises(LuminaError, match="nothing contains no detector"):
        JUDGES.load("nano")(tmp_path / "nothing")


# --- scoring and the summary


def scored(tmp_path, cells, script):
    """Rows for pictures given as (prompt row, red value), scored by a judge that reads the red value."""
    pictures = []
    for number, (row, red) in enumerate(cells):
        path = tmp_path / f"{number}.png"
        picture(red).save(path)
        pictures.append((path, row))
    return list(GenEval().score(pictures, FakeJudge(script), batch=2))


CAR = {"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "a car", "language": "en"}
TWO = {"tag": "counting", **COUNTED, "prompt": "three cars", "language": "en"}


def test_scored_rows_have_the_official_keys(tmp_path):
    (row,) = scored(tmp_path, [(CAR, 7)], {7: [Seen("car", score=0.5, box=(1, 2, 3.00049, 4))]})
    assert list(row) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert (row["correct"], row["reason"], row["filename"]) == (True, "", str(tmp_path / "0.png"))
    assert json.loads(row["metadata"]) == CAR
    assert json.loads(row["details"]) == {"car": [[1.0, 2.0, 3.0, 4.0, 0.5]]}


def test_counting_has_the_stricter_threshold(tmp_path):
    script = {1: [Seen("car", score=0.85)] * 3, 2: [Seen("car", score=0.95)] * 3 + [Seen("car", score=0.85)]}
    rows = scored(tmp_path, [(TWO, 1), (TWO, 2)], script)
    assert [row["correct"] for row in rows] == [False, True]


def test_a_judge_may_define_its_own_thresholds(tmp_path):
    judge = FakeJudge({0: [Seen("car", score=0.5)] * 3})
    judge.thresholds = {"default": 0.6, "counting": 0.4}
    picture().save(tmp_path / "0.png")
    rows = GenEval().score([(tmp_path / "0.png", CAR), (tmp_path / "0.png", TWO)], judge)
    assert [row["correct"] for row in rows] == [False, True]


def test_summary_is_the_mean_over_tasks_and_not_over_images(tmp_path):
    script = {1: [Seen("car")], 2: []}
    cup = CAR | {"include": [{"class": "cup", "count": 1}], "prompt": "a cup"}
    rows = scored(tmp_path, [(CAR, 1), (CAR, 1), (CAR, 2), (cup, 2), (TWO, 1), (TWO, 2)], script)
    summary = GenEval().summarise(rows)
    assert {tag: task["score"] for tag, task in summary["tasks"].items()} == {
        "single_object": 0.5,
        "counting": 0.0,
    }
    assert summary["overall"] == 0.25
    assert summary["pictures_correct"] == round(2 / 6, 5)
    assert summary["prompts_any_correct"] == round(1 / 3, 5)
    assert (summary["prompts"], summary["pictures"]) == (3, 6)
    assert summary["ci95"][0] <= 0.25 <= summary["ci95"][1]


def test_summary_has_scores_per_language(tmp_path):
    rows = scored(
        tmp_path, [(CAR, 1), (CAR | {"prompt": "ein Auto", "language": "de"}, 2)], {1: [Seen("car")]}
    )
    summary = GenEval().summarise(rows)
    assert {name: part["overall"] for name, part in summary["languages"].items()} == {"en": 1.0, "de": 0.0}
    assert [row["score of"] for row in summary_table(summary)] == ["single_object", "en", "de", "overall"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"include": [{"class": "zebra", "count": 1}]},
            "requests 'zebra'; the nano judge detects only the nano kinds",
        ),
        ({"include": [{"class": "car", "count": 1, "color": "gold"}]}, "requests 'gold car'"),
        ({"tag": "shape"}, "tag 'shape' is not one of GenEval's six"),
        ({"include": []}, "needs 'prompt' and 'include'"),
        ({"include": [{"class": "car"}]}, "needs 'class' and a whole 'count' in"),
        ({"include": ["car"]}, "needs 'class' and a whole 'count' in"),
        ({"include": [{"class": "car", "count": 1, "position": ["above", 0]}]}, "index of an earlier item"),
        ({"include": [PLACED[0], PLACED[1] | {"position": ["behind", 0]}]}, "one of left of, right of"),
    ],
)
def test_prompts_that_cannot_be_scored_are_reported(change, message):
    with pytest.raises(LuminaError, match=f"^here: .*{message}"):
        GenEval().check([("there", CAR), ("here", CAR | change)], FakeJudge())


def test_the_nano_judge_rejects_official_prompts():
    with pytest.raises(LuminaError, match="the nano judge detects only the nano kinds"):
        GenEval().check([("x", row) for row in official_prompts()], FakeJudge())


def test_scoring_zero_images_is_an_error():
    with pytest.raises(LuminaError, match="no image was scored"):
        GenEval().summarise([])


def test_gates():
    summary = {
        "benchmark": "geneval",
        "overall": 0.81,
        "tasks": {"counting": {"score": 0.5}},
        "languages": {"de": {"overall": 0.7}},
    }
    Gate.parse("geneval>=0.8").check(summary)
    Gate.parse("geneval.de > .69").check(summary)
    with pytest.raises(GateFailed, match=r"^geneval\.counting is 0\.5000; the gate requires >= 0\.6$"):
        Gate.parse("geneval.counting>=0.6").check(summary)
    for text in ("geneval", "geneval>=x", "geneval=0.8", ">=0.8", "geneval>=0.8.1"):
        with pytest.raises(UsageError, match="is not a gate"):
            Gate.parse(text)
    with pytest.raises(UsageError, match="no such score"):
        Gate.parse("dpg>=0.8").check(summary)


# --- folders


def fake_drawer(**settings):
    """A drawer of plain pictures, and the list of the noise numbers that it was asked for."""
    drawn = []

    def draw(rows, numbers):
        drawn.extend(numbers)
        return [picture(number % 256) for number in numbers]

    return ImageGenerator(draw, {"model": "fake", **settings}), drawn


def draw_all(rows, out, per_prompt=1, batch=2, **settings):
    """Draw into a folder; returns what was yielded and which noise numbers were drawn."""
    drawer, drawn = fake_drawer(**settings)
    return list(generate_images(rows, drawer, out, per_prompt, batch)), drawn


def test_generated_folders_have_the_official_layout(tmp_path):
    pictures, drawn = draw_all([CAR, TWO], tmp_path / "out", per_prompt=2, batch=3)
    assert drawn == [0, 1, 1000, 1001]
    assert pictures == list(scan_images(tmp_path / "out"))
    assert pictures[3] == (tmp_path / "out" / "00001" / "samples" / "00001.png", TWO)
    assert (tmp_path / "out" / "00000" / "metadata.jsonl").read_text() == json.dumps(CAR) + "\n"


def test_an_interrupted_run_resumes(tmp_path):
    drawer, _ = fake_drawer(plan={"steps": 4})
    next(generate_images([CAR, TWO], drawer, tmp_path, per_prompt=2, batch=2))
    pictures, drawn = draw_all([CAR, TWO], tmp_path, per_prompt=3, plan={"steps": 4})
    assert len(pictures) == 6
    assert drawn == [2, 1000, 1001, 1002]


def batch_dependent_generator(**settings):
    """A generator whose images depend on their batch, as rounding does."""

    def draw(rows, numbers):
        return [picture((number + sum(numbers) + len(numbers)) % 251) for number in numbers]

    return ImageGenerator(draw, {"model": "fake", **settings})


@pytest.mark.parametrize("saved", range(7))
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 16])
def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(tmp_path, monkeypatch, saved, batch):
    def run_all(out):
        list(generate_images([CAR, TWO], batch_dependent_generator(), out, 3, batch))
        return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    count = iter(range(100))

    def interrupted(*arguments, **settings):
        if next(count) == saved:
            raise KeyboardInterrupt
        return save_image(*arguments, **settings)

    monkeypatch.setattr("lumina_cli.core.evals.geneval.layout.save_image", interrupted)
    if saved < 6:
        with pytest.raises(KeyboardInterrupt):
            run_all(tmp_path / "cut")
    monkeypatch.undo()
    assert run_all(tmp_path / "cut") == run_all(tmp_path / "whole")


def test_complete_batches_are_not_generated_again(tmp_path):
    draw_all([CAR, TWO], tmp_path, per_prompt=2, batch=2)
    (tmp_path / "00001" / "samples" / "00000.png").unlink()
    assert draw_all([CAR, TWO], tmp_path, per_prompt=2, batch=2)[1] == [1000, 1001]


def test_changed_settings_generate_again(tmp_path):
    drawn = [draw_all([CAR], tmp_path, seed=seed)[1] for seed in (1, 1, 2)]
    assert drawn == [[0], [], [0]]


def test_a_damaged_image_is_generated_again(tmp_path):
    (((path, _),), _) = draw_all([CAR], tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    assert draw_all([CAR], tmp_path)[1] == [0]


def test_a_folder_with_different_prompts_is_rejected(tmp_path):
    draw_all([CAR, TWO], tmp_path)
    with pytest.raises(
        LuminaError, match=r"different run \(.*00000/metadata\.jsonl does not have the prompt 'three cars'\)"
    ):
        draw_all([TWO, CAR], tmp_path)
    with pytest.raises(LuminaError, match=r"different run \(this run does not have the prompt of .*00001\)"):
        draw_all([CAR], tmp_path)


def test_invalid_folders_are_reported(tmp_path):
    with pytest.raises(LuminaError, match="no such folder"):
        list(scan_images(tmp_path / "nothing"))
    with pytest.raises(LuminaError, match="no numbered folder"):
        list(scan_images(tmp_path))
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    with pytest.raises(LuminaError, match=r"metadata\.jsonl: missing"):
        list(scan_images(tmp_path))
    metadata = tmp_path / "00000" / "metadata.jsonl"
    metadata.write_text("{}\n{}\n")
    with pytest.raises(LuminaError, match="not a single JSON object"):
        list(scan_images(tmp_path))
    metadata.write_text("[1]")
    with pytest.raises(LuminaError, match="expected a JSON object, got list"):
        list(scan_images(tmp_path))
    metadata.write_text(json.dumps(CAR))
    with pytest.raises(LuminaError, match="no image such as"):
        list(scan_images(tmp_path))


def test_an_unreadable_image_is_reported(tmp_path):
    (((path, row),), _) = draw_all([CAR], tmp_path)
    path.write_bytes(b"not a picture")
    with pytest.raises(LuminaError, match=r"00000\.png"):
        list(GenEval().score([(path, row)], FakeJudge()))


def test_fingerprint_depends_on_the_weights(tmp_path):
    weights = tmp_path / "transformer" / "w.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"a" * 100)
    first = fingerprint(tmp_path)
    weights.write_bytes(b"a" * 99 + b"b")
    assert fingerprint(tmp_path) != first


def test_compare_pairs_common_prompts(tmp_path):
    cup = CAR | {"include": [{"class": "cup", "count": 1}], "prompt": "a cup"}
    runs = {"a": [(CAR, 1), (TWO, 2)], "b": [(CAR, 2), (TWO, 2), (cup, 1)]}
    script = {1: [], 2: [Seen("car")] * 3}
    for name, cells in runs.items():
        (tmp_path / name).mkdir()
        rows = scored(tmp_path / name, cells, script)
        write_scores(tmp_path / name, rows, GenEval().summarise(rows) | {"settings": {"judge": name}})
    result = compare(tmp_path / "a", tmp_path / "b" / "summary.json")
    assert [(row["task"], row["first"], row["second"], row["difference"]) for row in result] == [
        ("single_object", 0.0, 1.0, 1.0),
        ("counting", 1.0, 1.0, 0.0),
        ("overall", 0.5, 1.0, 0.5),
    ]
    assert result[-1]["prompts"] == 2
    assert result[-1]["differs"] == ["judge"]


def test_compare_reports_missing_files(tmp_path):
    with pytest.raises(LuminaError, match=r"summary\.json: missing"):
        compare(tmp_path, tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(LuminaError, match="not JSON"):
        compare(tmp_path, tmp_path)


def test_a_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(LuminaError, match=r"^the disk is full: .*00000/samples/00000\.png$"):
        draw_all([CAR], tmp_path)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LuminaError, match=r"^the disk is full: .*scores/rows\.jsonl$"):
        write_scores(tmp_path / "scores", [{"correct": True}], {})
