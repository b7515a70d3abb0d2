"""The nano captioner: its training, its model folder, and the accuracy of its captions of unseen scenes."""

import json
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

from lumina_cli.cli.output import ProgressCounter
from lumina_cli.cli.train import _dependencies
from lumina_cli.core.evals.captions.truth import score_captions
from lumina_cli.core.nano.caption_parser import facts_of, main_relations, parse_caption
from lumina_cli.core.nano.captioner import ANSWER, GRID, IMAGE, TEMPLATE, add_questions, build_captioner
from lumina_cli.core.nano.captions import LANGUAGES, LEVELS
from lumina_cli.core.nano.dataset import render_images
from lumina_cli.core.nano.rendering.renderer import render
from lumina_cli.core.nano.scene import INVERSE, draw_scene
from lumina_cli.core.registry import ASSETS, CAPTIONERS, PARTS
from lumina_cli.core.training.nano import captioner as training
from lumina_cli.core.training.nano.caption_batches import PAIRS, CaptionWriter, draw_caption, mirrored
from lumina_cli.core.training.nano.caption_losses import words_loss
from lumina_cli.core.training.nano.sub_batches import mirror_boxes
from lumina_cli.core.unicap.checks.rules import check_caption
from lumina_cli.core.unicap.prompts import MAX_TOKENS, instruction
from lumina_cli.core.unicap.protocol import Question
from lumina_cli.core.unicap.structured import rewriting

PROMPTS = _dependencies("captioner", ProgressCounter())["prompts"]
FOLDER = ASSETS / "nano" / "captioner"
UNSEEN = 800_001
SMALL = {
    "scenes": 24,
    "batch": 4,
    "steps": 6,
    "looking": 2,
    "rewrite_every": 3,
    "save_every": 2,
    "captions": 2,
    "vision_layers": 1,
    "text_layers": 1,
}


@pytest.fixture(autouse=True)
def one_thread():
    """The model is small: on a busy machine two threads wait longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def open_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "nano" / "tokenizer")
    add_questions(tokenizer, PROMPTS.pieces())
    return tokenizer


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    settings = training.SCHEMA(**SMALL)
    render_images(training.SEED, settings.scenes, tmp_path, workers=1)
    train = PARTS.load("captioner")
    whole = list(train(settings, tmp_path, prompts=PROMPTS))
    assert np.isfinite(whole[-1]["loss"])
    names = {path.name for path in (tmp_path / "captioner").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    save = training.TrainingProgress.save

    def killed(self, step):
        save(self, step)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingProgress, "save", killed)
        with pytest.raises(Killed):
            list(train(settings, tmp_path, prompts=PROMPTS))
    resumed = list(train(settings, tmp_path, resume=True, prompts=PROMPTS))
    assert resumed[-1]["step"] == settings.steps
    assert resumed[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)


def test_a_mirrored_scene_describes_the_flipped_image():
    for index in range(60):
        scene = draw_scene(3, index)
        other = mirrored(scene)
        true, turned = facts_of(scene), facts_of(other)
        assert (true.kinds, true.tints, true.counts) == (turned.kinds, turned.tints, turned.counts)
        sides = {(b, r, a) if r == "left of" else (a, r, b) for a, r, b in true.relations}
        assert turned.relations == sides
        assert main_relations(other, "detailed") <= sides
        assert other.light == INVERSE[f"{scene.light} of"].removesuffix(" of")
        assert mirrored(other) == scene


def test_boxes_follow_a_mirrored_scene():
    scene = next(s for s in (draw_scene(3, i) for i in range(99)) if s.layout == "group")
    pictures = render([scene])
    boxes = np.full((1, 4, 4), np.nan, np.float32)
    for i, mask in enumerate(pictures[0].masks):
        rows, columns = np.nonzero(mask)
        boxes[0, i] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    other = mirrored(scene)
    turned = mirror_boxes(boxes, [other], np.array([True]), 128)
    again = mirror_boxes(turned, [scene], np.array([True]), 128)
    assert np.array_equal(again, boxes, equal_nan=True)
    assert (np.diff(turned[0, :3, 0]) > 0).all()  # still in the order from left to right
    for thing, box, old in zip(other.things, turned[0], boxes[0, 2::-1], strict=False):
        assert thing.kind in {t.kind for t in scene.things}
        assert box[0] == pytest.approx(128 - old[2])


def test_training_captions_contain_all_facts_and_pass_the_checks():
    rng, failed = random.Random(0), Counter()
    for index in range(30):
        scene = draw_scene(5, index)
        for level, lang in PAIRS:
            text = draw_caption(scene, level, lang, rng, PROMPTS)
            said = parse_caption(text, lang)
            assert said.tints == facts_of(scene).tints
            assert main_relations(scene, level) <= said.relations
            failed[level, lang] += check_caption(text, level, lang) is not None
    assert sum(failed.values()) < 0.02 * 30 * len(PAIRS), failed


def test_a_caption_attends_only_to_its_image_and_itself():
    writer = CaptionWriter(open_tokenizer(), PROMPTS)
    batch = writer.image_rows([draw_scene(5, 0), draw_scene(5, 1)], 3, random.Random(0))
    tokens, mask = batch["tokens"][0], batch["mask"][0, 0]
    prefix = 1 + GRID * GRID
    starts = (tokens == writer.answer).nonzero()[:, 0].tolist()
    assert len(starts) == 3
    first, second = starts[0], starts[1]
    assert mask[second, :prefix].all()
    assert not mask[second, prefix : first + 2].any()
    assert not mask[first, first + 1 :].any()
    assert not mask[:prefix, prefix:].any()
    assert batch["places"][0, second - 1] == prefix  # each prompt directly follows the image
    spoken = tokens[batch["spoken"][0]].tolist()
    assert spoken.count(writer.end) == 3
    assert writer.answer not in spoken


def test_packed_captions_have_the_loss_of_separate_captions():
    """The loss of a caption in a row of several equals the loss that the model computes for it alone."""
    torch.manual_seed(0)
    tokenizer = open_tokenizer()
    model = build_captioner(tokenizer, 1, 1).eval()
    writer = CaptionWriter(tokenizer, PROMPTS)
    batch = writer.image_rows([draw_scene(5, 0)], 2, random.Random(0))
    pixels = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        seen = model.model.get_image_features(pixels, return_dict=True).pooler_output
        packed = words_loss(model, batch, seen)
        tokens, spoken = batch["tokens"][0], batch["spoken"][0]
        starts = (tokens == writer.answer).nonzero()[:, 0].tolist()
        losses = []
        for start, end in ((65, starts[1] - 1), (starts[1] - 1, len(tokens))):
            one = torch.cat([tokens[:65], tokens[start:end]])[None]
            loud = torch.cat([spoken[:65], spoken[start:end]])
            logits = model(input_ids=one, pixel_values=pixels).logits[0, :-1][loud[1:]]
            losses.append(torch.nn.functional.cross_entropy(logits, one[0, 1:][loud[1:]], reduction="sum"))
    assert packed.item() == pytest.approx(sum(losses).item() / int(spoken.sum()), rel=1e-4)


def test_the_model_folder_is_small_and_contains_only_safe_files():
    files = list(FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
    assert (FOLDER / "chat_template.jinja").read_text(encoding="utf-8").strip() == TEMPLATE.strip()


@cache
def open_engine():
    return CAPTIONERS.load("nano")()


def test_each_prompt_is_one_token():
    tokenizer = open_engine().tokenizer
    for level, lang in PAIRS:
        assert len(tokenizer(instruction(level, lang), add_special_tokens=False).input_ids) == 1
        before, after = rewriting("\0", level, lang).split("\0")
        for piece in (before.lstrip(), after.rstrip()):
            assert len(tokenizer(piece, add_special_tokens=False).input_ids) == 1, piece


def test_the_processor_puts_the_image_first():
    engine = open_engine()
    picture = render([draw_scene(5, 0)])[0].image
    parts = [{"type": "text", "text": " What? "}, {"type": "image", "image": picture.resize((300, 200))}]
    inputs = engine.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    words = engine.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words[0] == "<bos>"
    assert words[1 : 1 + GRID * GRID] == [IMAGE] * (GRID * GRID)
    assert words[-1] == ANSWER
    assert inputs["pixel_values"].shape == (1, 3, 128, 128)


def questions_about(pictures, pairs, seed=0):
    return [
        Question(instruction(level, lang), level, lang, seed + number, MAX_TOKENS[level], picture)
        for number, picture in enumerate(pictures)
        for level, lang in pairs
    ]


@cache
def unseen(count):
    scenes = [draw_scene(UNSEEN, index) for index in range(count)]
    return scenes, [picture.image for picture in render(scenes)]


@pytest.mark.slow
def test_captions_do_not_depend_on_other_batch_entries():
    _, pictures = unseen(12)
    engine = open_engine()
    questions = questions_about(pictures[:2], [("short", "en"), ("tags", "ja")])
    together = engine.answer(questions)
    alone = [engine.answer([question])[0] for question in questions]
    backwards = engine.answer(questions[::-1])[::-1]
    crowded = engine.answer(questions_about(pictures[2:7], [("short", "de")], seed=99) + questions)[5:]
    assert together == alone == backwards == crowded


TARGETS = {"objects": 0.95, "colours": 0.95, "counts": 0.9, "relations": 0.85}


@cache
def captions_of_unseen(count=36):
    """Rows of unseen scenes with all captions that the captioner generates for them."""
    scenes, pictures = unseen(count)
    rows = [{"scene": scene.to_json(), "captions": {}} for scene in scenes]
    asked = questions_about(pictures, PAIRS)
    for number, (question, answer) in enumerate(zip(asked, open_engine().answer(asked), strict=True)):
        assert answer.finished
        captions = rows[number // len(PAIRS)]["captions"]
        captions.setdefault(question.lang, {})[question.level] = answer.text
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LEVELS, *LANGUAGES])
def test_captions_of_unseen_scenes_are_accurate_at_each_level_and_in_each_language(name):
    rows = [
        {**row, "captions": {
            lang: {level: text for level, text in texts.items() if name in (lang, level)}
            for lang, texts in row["captions"].items()
        }}
        for row in captions_of_unseen()
    ]  # fmt: skip
    *_, everything = score_captions(rows)
    assert everything["captions"] == len(rows) * (len(LANGUAGES) if name in LEVELS else len(LEVELS))
    reached = {aspect: everything[aspect]["f1"] for aspect in TARGETS}
    assert all(reached[aspect] >= least for aspect, least in TARGETS.items()), reached


def test_captions_of_other_scenes_are_not_accurate():
    rows = captions_of_unseen()
    turned = [{**row, "scene": rows[number - 1]["scene"]} for number, row in enumerate(rows)]
    *_, everything = score_captions(turned)
    assert all(everything[aspect]["f1"] < 0.5 for aspect in ("objects", "colours", "relations"))


@pytest.mark.slow
def test_a_caption_is_rewritten_in_another_language():
    scenes, _ = unseen(12)
    rng, asked, wanted = random.Random(1), [], []
    for scene in scenes[:8]:
        text = draw_caption(scene, "detailed", "en", rng, PROMPTS)
        for level, lang in (("short", "de"), ("tags", "zh")):
            asked.append(Question(rewriting(text, level, lang), level, lang, 7, MAX_TOKENS[level]))
            wanted.append(facts_of(scene))
    answers = open_engine().answer(asked)
    said = [
        parse_caption(answer.text, question.lang) for answer, question in zip(answers, asked, strict=True)
    ]
    right = sum(one.tints == true.tints for one, true in zip(said, wanted, strict=True))
    assert right >= 0.8 * len(asked)
    assert order_does_not_matter(asked, answers)


def order_does_not_matter(asked, answers):
    """Texts of various lengths have the same answers in another order and alone."""
    backwards = open_engine().answer(asked[::-1])[::-1]
    return backwards == answers and open_engine().answer(asked[3:4]) == answers[3:4]


def test_the_recipe_is_valid():
    from lumina_cli.core.recipe import load_recipe

    settings = load_recipe("nano-captioner", training.SCHEMA)
    assert settings.part == "captioner"
    assert json.loads(settings.model_dump_json())["steps"] >= settings.looking
