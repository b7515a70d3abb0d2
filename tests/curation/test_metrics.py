"""Metrics of images and copies among them: definitions, brute force, and missing dependencies."""

import builtins
import importlib.util
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lumina_cli.core.curation import dedup
from lumina_cli.core.curation.dedup import choose_bands, exact_groups, hashes_of, keep_best, near_groups
from lumina_cli.core.curation.metrics import TextArea, laplacian_variance, measure, open_metrics
from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError


def photo(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth shapes, so that a copy stays recognizable."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 255, (6, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def test_sharpness_is_the_variance_of_the_laplacian():
    values = np.random.default_rng(0).integers(0, 256, (512, 7))  # at the size at which it is measured
    image = Image.fromarray(values.astype(np.uint8)).convert("RGB")
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    wanted = [(values[y : y + 3, x : x + 3] * kernel).sum() for y in range(510) for x in range(5)]
    assert laplacian_variance(image) == pytest.approx(np.var(wanted))
    assert laplacian_variance(Image.new("RGB", (50, 50), "red")) == 0
    assert laplacian_variance(Image.new("RGB", (1, 500))) == 0


def test_blur_and_enlargement_lower_sharpness_and_more_pixels_do_not():
    noisy = Image.fromarray(np.random.default_rng(1).integers(0, 255, (512, 512, 3), np.uint8))
    blurred = noisy.filter(ImageFilter.GaussianBlur(2))
    assert laplacian_variance(blurred) < laplacian_variance(noisy) / 20
    spectrum = np.fft.fft2(np.random.default_rng(2).normal(size=(1024, 1024)))
    spectrum /= np.hypot(*np.meshgrid(np.fft.fftfreq(1024), np.fft.fftfreq(1024))) + 1e-3  # as photographs
    waves = np.fft.ifft2(spectrum).real
    scene = Image.fromarray((128 + 40 * waves / waves.std()).clip(0, 255).astype(np.uint8)).convert("RGB")
    sizes = [128, 300, 512, 1024]
    small, middle, own, large = (laplacian_variance(scene.resize((side, side))) for side in sizes)
    assert small < middle / 2 < own / 4
    assert large == pytest.approx(own, rel=0.2)
    again = scene.resize((128, 128)).resize((1024, 1024))
    assert laplacian_variance(again) == pytest.approx(small, rel=0.1)


def test_numbers_are_scores_and_texts_are_hashes():
    rows = measure([photo(), Image.new("RGB", (8, 8))], open_metrics(["entropy", "phash", "sharpness"]))
    assert set(rows[0]["scores"]) == {"entropy", "sharpness"}
    assert rows[1]["scores"]["entropy"] == 0
    assert 0 < rows[0]["scores"]["entropy"] <= 8
    assert len(rows[0]["hashes"]["phash"]) == 16
    int(rows[0]["hashes"]["phash"], 16)


def test_hashes_of_copies_are_near_and_others_far():
    scorer = open_metrics(["phash"])["phash"]
    original = photo(3, (300, 200))
    copies = [original.resize((150, 100)), original.filter(ImageFilter.GaussianBlur(1))]
    first, *near = (int(text, 16) for text in scorer([original, *copies]))
    assert max((first ^ other).bit_count() for other in near) <= 4
    others = (int(text, 16) for text in scorer([photo(seed) for seed in range(4, 12)]))
    assert min((first ^ other).bit_count() for other in others) > 10


def test_unknown_names_unused_models_and_missing_packages_are_errors(monkeypatch):
    with pytest.raises(UsageError, match="did you mean 'sharpness'"):
        open_metrics(["sharpnes"])
    with pytest.raises(UsageError, match="--model entropy=x/y: score 'entropy' takes no model"):
        open_metrics(["entropy"], {"entropy": "x/y"})
    with pytest.raises(UsageError, match="is not in --scores"):
        open_metrics(["entropy"], {"nsfw": "x/y"})
    whole = builtins.__import__

    def without(name, *rest, **words):
        if name == "rapidocr":
            raise ImportError(name)
        return whole(name, *rest, **words)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"lumina-cli\[ocr\]"):
        open_metrics(["text_area"])


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="the ocr extra is not installed")
def test_text_area_is_the_area_of_text():
    page = Image.new("RGB", (600, 400), "white")
    ImageDraw.Draw(page).text((40, 60), "Invoice number 2024", fill="black", font=ImageFont.load_default(52))
    plain = Image.new("RGB", (600, 400), "white")
    ImageDraw.Draw(plain).ellipse((100, 100, 400, 300), fill="red")
    written, empty = TextArea()([page, plain])
    assert 0.05 < written < 0.4
    assert empty == 0


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny random image classifier, in the format of the hub."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_the_score_of_a_classifier_is_the_probability_of_a_class(classifier):
    from transformers import pipeline

    images = [photo(seed) for seed in range(3)]
    scores = open_metrics(["nsfw"], {"nsfw": classifier})["nsfw"](images)
    expected = pipeline("image-classification", model=classifier)(images)
    wanted = [next(each["score"] for each in one if each["label"] == "nsfw") for one in expected]
    assert scores == pytest.approx(wanted, abs=1e-5)
    named = open_metrics(["aesthetic"], {"aesthetic": f"{classifier}#normal"})["aesthetic"](images)
    assert named == pytest.approx([1 - share for share in wanted], abs=1e-5)
    with pytest.raises(UsageError, match="only normal, nsfw"):
        open_metrics(["aesthetic"], {"aesthetic": classifier})
    with pytest.raises(LuminaError, match="does not provide a score"):
        open_metrics(["nsfw"], {"nsfw": classifier + "/gone"})


@pytest.mark.parametrize("with_relu", [False, True])
def test_clip_with_a_linear_head(tmp_path, with_relu):
    from safetensors.torch import load_file, save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    with pytest.raises(LuminaError, match="neither an image classifier nor CLIP with a linear head"):
        open_metrics(["aesthetic"], {"aesthetic": str(tmp_path)})
    first, second = torch.nn.Linear(12, 5), torch.nn.Linear(5, 1)
    head = {"layers.0.weight": first.weight, "layers.0.bias": first.bias}
    head |= {"layers.2.weight": second.weight, "layers.2.bias": second.bias}
    weights = load_file(tmp_path / "model.safetensors") | {
        name: value.detach() for name, value in head.items()
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    # as the hub's aesthetic predictors have it: a class of their own, and code that must not be run
    settings = json.loads((tmp_path / "config.json").read_text()) | {
        "model_type": "aesthetics_predictor",
        "architectures": ["AestheticsPredictorV2ReLU" if with_relu else "AestheticsPredictorV2Linear"],
        "auto_map": {"AutoConfig": "predictor.Config", "AutoModel": "predictor.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "predictor.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    image = photo()
    scores = open_metrics(["aesthetic"], {"aesthetic": str(tmp_path)})["aesthetic"]([image])
    assert not (tmp_path / "ran").exists()
    with torch.no_grad():
        embeds = model(**processor(images=[image], return_tensors="pt")).image_embeds
        hidden = first(embeds / embeds.norm(dim=-1, keepdim=True))
        wanted = second(hidden.relu() if with_relu else hidden)
    assert scores == pytest.approx(wanted.flatten().tolist(), abs=1e-5)


def brute_groups(hashes: np.ndarray, distance: int) -> list[set[int]]:
    """Connected groups, by comparing all pairs."""
    groups = [{i} for i in range(len(hashes))]
    for i in range(len(hashes)):
        for j in range(i):
            if int(hashes[i] ^ hashes[j]).bit_count() <= distance:
                a, b = (next(g for g in groups if n in g) for n in (i, j))
                if a is not b:
                    groups.remove(b)
                    a |= b
    return groups


@pytest.mark.parametrize("distance", [1, 3, 4, 8, 12])
def test_near_groups_equal_those_of_brute_force(distance):
    random = np.random.default_rng(distance)
    hashes = random.integers(0, 2**64, 150, dtype=np.uint64)
    copies = hashes[random.integers(0, 150, 120)]
    for _ in range(distance + 1):
        copies = copies ^ (np.uint64(1) << random.integers(0, 64, 120, dtype=np.uint64))
    hashes = np.concatenate([hashes, copies, hashes[:10]])
    labels = near_groups(hashes, distance)
    found = [set(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, brute_groups(hashes, distance)))
    assert len(found) < len(hashes) - 10


def test_thousands_of_near_copies_are_one_group(monkeypatch):
    monkeypatch.setattr(dedup, "MAX_NEIGHBORS", 128)
    monkeypatch.setattr(dedup, "MAX_PAIRS", 1 << 16)
    random = np.random.default_rng(0)
    alike = np.full(3000, random.integers(0, 2**64, dtype=np.uint64))
    for _ in range(3):
        alike = alike ^ (np.uint64(1) << random.integers(0, 64, len(alike), dtype=np.uint64))
    others = random.integers(0, 2**64, 500, dtype=np.uint64)
    labels = near_groups(np.concatenate([alike, others]), 4)
    assert len(set(labels[: len(alike)].tolist())) == 1
    assert len(set(labels.tolist())) == 501


def test_the_number_of_bands_is_limited():
    for count in (10**4, 10**6, 110 * 10**6):
        for distance in range(1, 17):
            pieces, equal = choose_bands(count, distance)
            assert pieces == distance + equal <= 64


def test_the_best_of_each_group_is_kept_and_ties_go_to_the_first():
    groups = np.array([0, 1, 0, 1, 2, 3, 3])
    scores = np.array([1, 5, 2, 5, np.nan, np.nan, -1])
    assert keep_best(groups, scores).tolist() == [False, True, True, False, True, False, True]
    pixels = np.array([9, 1, 8, 2, 0, 3, 3], np.int32)
    assert keep_best(groups, scores, pixels).tolist() == [True, False, False, True, True, False, True]


def test_samples_without_a_hash_are_not_copies():
    groups = exact_groups(pa.chunked_array([["a", None], ["a", None, "b"]]))
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 4


def test_hashes_are_parsed_from_text():
    texts = pa.chunked_array([["00000000000000ff"], ["8000000000000001", None]])
    assert hashes_of(texts.drop_null()).tolist() == [255, 2**63 + 1]
    assert hashes_of(texts.slice(1, 1)).tolist() == [2**63 + 1]
    for bad in ("ff", "zz00000000000000"):
        with pytest.raises(LuminaError, match="not 16 hex digits"):
            hashes_of(pa.chunked_array([[bad]]))
