"""`--score objects`: noun phrases of captions, and detectors that look for them."""

import json
import shutil
from functools import partial

import pytest
import torch
from tiny_captioner import TOKENS, make_tokenizer, plain_picture, run_caption, save_clip
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    SwinConfig,
)

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.unicap.batch import CaptionTask
from lumina_cli.core.unicap.engines.noop import TEXTS
from lumina_cli.core.unicap.items import CaptionItem
from lumina_cli.core.unicap.scoring.clip import open_scorer
from lumina_cli.core.unicap.scoring.noun_phrases import find_noun_phrases

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NAMED = ["red car", "blue ball", "plain grey floor"]  # by the `noop` engine


def save_owl(folder, config, model, pixels) -> None:
    tokenizer = make_tokenizer()
    text = SIZE | TOKENS | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = SIZE | {"image_size": 32, "patch_size": 8}
    model(config(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    pixels(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_dino(folder) -> None:
    tokenizer = make_tokenizer()
    swin = SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, image_size=32,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = BertConfig(**SIZE, vocab_size=len(tokenizer), max_position_embeddings=64)
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=text, num_queries=6, d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=40,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SAVE = {
    "owlvit": partial(
        save_owl, config=OwlViTConfig, model=OwlViTForObjectDetection, pixels=OwlViTImageProcessorPil
    ),
    "owlv2": partial(
        save_owl, config=Owlv2Config, model=Owlv2ForObjectDetection, pixels=Owlv2ImageProcessorPil
    ),
    "dino": save_dino,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder of each tiny untrained detector."""
    made = {}
    for name, save in SAVE.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp("models") / name
        save(made[name])
    return made


def directly(folder, image):
    """Return the best score of each of NAMED by a call of the model itself."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if folder.name == "dino":
        model = GroundingDinoForObjectDetection.from_pretrained(folder)
        pixels = GroundingDinoImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")
        pieces = [
            tokenizer(text).input_ids
            for text in ("red car", ".", " blue ball", ".", " plain grey floor", ".")
        ]
        ids = torch.tensor([[token for piece in pieces for token in piece]])
        probs = model(**pixels, input_ids=ids).logits.sigmoid()[0]
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
        spans = [(0, ends[0]), (ends[1], ends[2]), (ends[3], ends[4])]
        return [probs[:, a:b].mean(1).max().item() for a, b in spans]
    owl2 = folder.name == "owlv2"
    model = (Owlv2ForObjectDetection if owl2 else OwlViTForObjectDetection).from_pretrained(folder)
    pixels = (Owlv2ImageProcessorPil if owl2 else OwlViTImageProcessorPil).from_pretrained(folder)
    inputs = pixels(image, return_tensors="pt")
    scores = []
    for phrase in NAMED:
        text = tokenizer(phrase, padding="max_length", max_length=16, return_tensors="pt")
        found = model(**inputs, input_ids=text.input_ids, attention_mask=text.attention_mask)
        scores.append(found.logits.sigmoid().max().item())
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVE)
def test_a_caption_score_matches_the_phrase_scores_of_the_model(folders, name, tmp_path, capsys):
    image = plain_picture("red")
    image.paste((20, 200, 40), (0, 0, 20, 16))
    image.save(tmp_path / "picture.png")
    wanted = directly(folders[name], image)
    assert len(set(wanted)) == 3
    words = (
        tmp_path / "picture.png",
        "--engine",
        "noop",
        "--levels",
        "short",
        "--device",
        "cpu",
        "--retries",
        0,
    )
    lumina = partial(run_caption, capsys, *words)
    code, (row,), _ = lumina("--langs", "en,de", "--score", f"objects:{folders[name]}")
    assert (code, row["caption_scores"]["en"]) == (0, {"short": pytest.approx(sum(wanted) / 3, abs=1e-4)})
    assert "de" not in row["caption_scores"]
    assert row["captions"]["de"]["short"] == TEXTS["de"]
    low, middle, _ = sorted(wanted)
    code, (row,), _ = lumina("--score", f"objects:{folders[name]}@{(low + middle) / 2}")
    (bad,) = row["rejected_captions"]
    assert bad["code"] == "not there"
    assert repr(NAMED[wanted.index(low)]) in bad["reason"]


def test_unscored_text_is_reported_once(folders, tmp_path, capsys):
    from lumina_cli.cli.app import run

    for colour in ("red", "blue"):
        plain_picture(colour).save(tmp_path / f"{colour}.png")
    words = ["caption", str(tmp_path), "--engine", "noop", "--levels", "short", "--langs", "en,de,zh"]
    out = tmp_path / "rows.jsonl"
    run([*words, "--score", f"objects:{folders['owlv2']}", "--out", str(out), "--json"])
    told = capsys.readouterr()
    assert told.err.count("4 not scored (the scorer does not support their language)") == 1
    assert json.loads(told.out)["not_scored"] == 4


def judged(scorer, text, level="short"):
    task = CaptionTask(CaptionItem(0, {}, plain_picture("red")), "en", level, "", text=text)
    scorer.judge([task])
    return task.reason, task.item.scores.get("en", {}).get(level)


def test_a_missing_object_is_named(folders, monkeypatch):
    scorer = open_scorer(f"objects:{folders['owlv2']}@0.3", "cpu")
    there = {"car": 0.9, "ball": 0.6, "cat": 0.1, "floor": 0.3}
    monkeypatch.setattr(
        scorer, "best_box_scores", lambda item, phrases: [there[one.split()[-1]] for one in phrases]
    )
    assert judged(scorer, "a red car left of a blue ball on the floor") == (None, 0.6)
    assert judged(scorer, "red car, blue ball", "tags") == (None, 0.75)
    reason, score = judged(scorer, "a red car, a black cat and a ball")
    assert (reason.code, score) == ("not there", None)
    assert reason == "names 'black cat', whose best box scores 0.1, less than 0.3"
    assert judged(scorer, "soft light from the left") == (None, None)


def test_long_texts_are_split_or_reported(folders):
    item = CaptionItem(0, {}, plain_picture("red"))
    phrases = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("car", "ball", "cup")]
    dino = open_scorer(f"objects:{folders['dino']}", "cpu")
    texts = dino._texts(phrases)
    assert len(texts) > 1
    assert [text[a:b] for text, spans in texts for a, b in spans] == phrases
    assert max(len(dino.tokenizer(text)["input_ids"]) for text, _ in texts) <= dino.longest
    assert 0 < min(dino.best_box_scores(item, phrases)) <= max(dino.best_box_scores(item, phrases)) < 1
    assert dino.stats.counts["cut_scores"] == 0
    for name, scorer in (("dino", dino), ("owlvit", open_scorer(f"objects:{folders['owlvit']}", "cpu"))):
        scorer.best_box_scores(CaptionItem(0, {}, plain_picture("red")), ["red car", "elephant " * 40])
        assert scorer.stats.counts["cut_scores"] == 1, name


def test_invalid_and_incomplete_detectors_are_rejected(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    save_clip(tmp_path / "clip")
    with pytest.raises(LuminaError, match="is a clip model; --score objects supports owlvit, owlv2"):
        open_scorer(f"objects:{tmp_path / 'clip'}", "cpu")
    with pytest.raises(LuminaError, match="no such folder"):
        open_scorer(f"objects:{tmp_path / 'none'}", "cpu")
    with pytest.raises(UsageError, match="between 0 and 1"):
        open_scorer(f"objects:{folders['owlv2']}@1.5", "cpu")
    shutil.copytree(folders["owlv2"], tmp_path / "torn")
    weights = load_file(tmp_path / "torn" / "model.safetensors")
    weights.pop("class_head.dense0.weight")
    save_file(weights, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
    with pytest.raises(LuminaError, match=r"has missing weights, such as class_head\.dense0\.weight"):
        open_scorer(f"objects:{tmp_path / 'torn'}", "cpu")


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        (TEXTS["en"], NAMED),
        ("A man wearing a striped shirt is riding a bicycle along the beach.", ["man", "striped shirt", "bicycle", "beach"]),
        ("The image shows a wooden table with a cup of coffee, and some books.", ["wooden table", "coffee", "books"]),
        ("Two dogs running toward a woman dressed in a red coat in the background.", ["dogs", "woman", "red coat"]),
        ("A group of people; the lighting is soft and the mood is calm.", ["people"]),
        ("Its leaves cast shadows. An apple, three pears and cherries lie in a bowl.", ["leaves", "apple", "pears", "cherries", "bowl"]),
        ("The cat sleeps next to the cat.", ["cat"]),
        ("Soft light from the left.", []),
    ],
)  # fmt: skip
def test_noun_phrases_of_a_caption(caption, things):
    assert find_noun_phrases(caption) == things


def test_tags_are_used_unchanged_as_phrases():
    assert find_noun_phrases("red car, 2 blue balls, outdoor, soft light, car", tags=True) == [
        "red car",
        "blue balls",
        "car",
    ]
