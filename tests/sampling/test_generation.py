"""Sampling: parity with the official latents and diffusers, independence of the batch, rows and their files."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import lumina_cli
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.models import locate
from lumina_cli.core.models.locate import choose_model, find_model
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.convert import from_official
from lumina_cli.core.registry import MODELS
from lumina_cli.core.sampling import draw_latents
from lumina_cli.core.sampling.output.filenames import slug
from lumina_cli.core.sampling.output.metadata import from_metadata
from lumina_cli.core.sampling.pipeline import Pipeline, load_pipeline, parse_size
from lumina_cli.core.sampling.request import Job, check_size
from lumina_cli.core.sampling.runner import generate_rows
from lumina_cli.core.sampling.text_cache import TextCache

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "official_nextdit_tiny.json").read_text())["sampling"]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "official_nextdit_tiny.safetensors")


@pytest.fixture(scope="module")
def official(golden):
    config = NextDiTConfig(
        dim=48, num_layers=3, num_refiner_layers=2, num_heads=3, num_kv_heads=1, multiple_of=16, text_dim=40,
        axes_dim=(8, 4, 4), axes_len=(300, 512, 512),
    )  # fmt: skip
    model = NextDiT(config)
    prefix = "weights."
    weights = {name.removeprefix(prefix): w for name, w in golden.items() if name.startswith(prefix)}
    model.load_state_dict(from_official(weights))
    return model.eval()


class Recorder:
    """A network that records the time and the batch entries of each call."""

    def __init__(self, model):
        self.model, self.times, self.rows = model, [], 0

    def __call__(self, latents, t, text, text_mask):
        assert t.unique().numel() == 1
        self.times.append(t[0].item())
        self.rows += len(latents)
        return self.model(latents, t, text, text_mask)


def plan_of(case):
    points = case["official_num_steps"]
    return Plan(
        solver=case["solver"],
        steps=points if case["solver"] == "dpm" else points - 1,
        shift=case["shift"],
        guidance=case["cfg_scale"],
        guide_until=min(case["guide_while_t_below"], 1.0),
        renorm=case["renorm"] or None,
    )


def captions(golden):
    features, mask = golden["in.cfg_features"], golden["in.cfg_mask"]
    return features[:1], mask[:1], features[1:], mask[1:]


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['output'][4:]}-{case['solver']}")
def test_latents_times_and_batch_entries_match_the_official_code(case, golden, official):
    network = Recorder(official)
    latents = draw_latents(network, golden["in.z"], *captions(golden), plan_of(case))
    assert network.times == pytest.approx(case["network_times"], abs=1e-6)
    unguided = (
        plan_of(case).guidance == 1
    )  # the official code also computes the entries that it multiplies by 0
    assert network.rows == case["network_rows"] // (2 if unguided else 1)
    assert relative(latents, golden[case["output"]]) < (1e-4 if case["solver"] == "dpm" else 1e-5)


class Counter(NextDiT):
    """A Next-DiT that counts encoded captions."""

    encoded = 0

    def encode_text(self, text, text_mask=None):
        self.encoded += len(text)
        return super().encode_text(text, text_mask)


@pytest.mark.parametrize("null_rows", [1, 3])
@pytest.mark.parametrize("short", ["caption", "null"])
def test_captions_are_encoded_once_with_the_same_latents(null_rows, short, official):
    texts, nulls = torch.randn(3, 12, 40), torch.randn(null_rows, 14, 40)
    lengths = torch.tensor([[12], [3], [7]]), torch.tensor([[14], [2], [9]])[:null_rows]
    masks, null_masks = torch.arange(12) < lengths[0], torch.arange(14) < lengths[1]
    if short == "null":
        nulls, null_masks = nulls[:, :1], null_masks[:, :1]
    noise = torch.stack([draw_noise(1, n, (16, 8, 8)) for n in range(3)])
    settings = (noise, texts, masks, nulls, null_masks, Plan(solver="midpoint", steps=4))
    counter = Counter(official.config).eval()
    counter.load_state_dict(official.state_dict())
    once = draw_latents(counter, *settings)
    assert counter.encoded == 3 + null_rows
    assert relative(once, draw_latents(Recorder(official), *settings)) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['output'][4:]}-{case['solver']}")
def test_official_latents_with_captions_encoded_once(case, golden, official):
    latents = draw_latents(official, golden["in.z"], *captions(golden), plan_of(case))
    assert relative(latents, golden[case["output"]]) < (1e-4 if case["solver"] == "dpm" else 1e-5)


def test_batch_of_eight_equals_eight_single_images(golden, official):
    *_, null_text, null_mask = captions(golden)
    lengths = torch.arange(2, 10)
    texts = torch.randn(8, 12, 40)
    masks = torch.arange(12) < lengths[:, None]
    noise = torch.stack([draw_noise(1, n, (16, 8, 8)) for n in range(8)])
    plan = Plan(solver="euler", steps=6)
    together = draw_latents(official, noise, texts, masks, null_text, null_mask, plan)
    for n in range(8):
        short = slice(n, n + 1), slice(0, int(lengths[n]))
        alone = draw_latents(
            official, noise[n : n + 1], texts[short], masks[short], null_text[:, :1], null_mask[:, :1], plan
        )
        assert relative(together[n : n + 1], alone) < 1e-4


def test_on_step_reports_each_step_and_a_missing_mask_means_all_real(golden, official):
    features = golden["in.cfg_features"][:1, :5]
    seen = []
    plan = Plan(solver="euler", steps=3)
    settings = (golden["in.z"], features, None, features[:, :1], None, plan)
    latents = draw_latents(official, *settings, on_step=lambda done, x: seen.append((done, x)))
    assert [done for done, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], latents)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_diffusers_generates_the_same_image_from_the_same_noise(tiny_folder, pipe):
    from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

    theirs = Lumina2Pipeline.from_pretrained(tiny_folder)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "two cups", latents=draw_noise(5, 0, (16, 8, 12))[None], width=96, height=64, num_inference_steps=8,
        guidance_scale=4.0, cfg_normalization=False, cfg_trunc_ratio=1.0,
    ).images  # fmt: skip
    plan = {"solver": "euler", "steps": 8, "guide_until": 1.0, "renorm": None}
    ours = pipe("two cups", seed=5, size="96x64", **plan)
    assert ours[0].size == expected[0].size == (96, 64)
    assert np.abs(pixels(ours[0]) - pixels(expected[0])).max() <= 2
    assert pixels(ours[0]).std() > 1


def test_pipeline_accepts_lists_and_counts(pipe):
    pictures = pipe(["two cups", "a ball"], seed=7, count=2, steps=2, solver="euler")
    assert len(pictures) == 4
    assert pictures[0].size == (64, 64)
    assert np.abs(pixels(pictures[0]) - pixels(pictures[1])).max() > 2
    alone = pipe("a ball", seed=7, count=2, steps=2, solver="euler")
    assert np.abs(pixels(pictures[3]) - pixels(alone[1])).max() <= 1


def test_pipeline_accepts_an_empty_prompt(pipe):
    (picture,) = pipe("", steps=1, solver="euler")
    assert picture.size == (64, 64)


def test_load_returns_a_pipeline(tiny_folder):
    assert isinstance(lumina_cli.load(str(tiny_folder)), Pipeline)


def test_model_folder_may_contain_a_plan(tiny_folder, tmp_path, pipe):
    assert pipe.plan == Plan(shift=6.0)
    shutil.copytree(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "plan.json").write_text('{"solver": "euler", "steps": 3}')
    assert load_pipeline(tmp_path / "m").plan == Plan(solver="euler", steps=3)


def fast(rows, pipe, out, **settings):
    return list(generate_rows(rows, pipe, out, plan={"solver": "euler", "steps": 2}, **settings))


def test_rows_keep_their_keys_and_gain_an_image(pipe, tmp_path):
    (row,) = fast([{"prompt": "two cups", "id": 3}], pipe, tmp_path, seed=4)
    assert row["id"] == 3
    assert row["seed"] == 4
    assert row["size"] == "64x64"
    assert Path(row["image"]).name == "00000-two-cups-s4.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000-two-cups-s4.png"]


def test_images_do_not_depend_on_batch_order_or_other_rows(pipe, tmp_path):
    rows = [
        {"prompt": "two cups"},
        {"prompt": "a red car left of a blue ball", "seed": 9},
        {"prompt": "a ball"},
    ]
    first = fast(rows, pipe, tmp_path / "a", batch=3, count=2)
    second = fast(rows[::-1], pipe, tmp_path / "b", batch=1, count=2)
    images = [{(row["prompt"], row["number"]): row["image"] for row in side} for side in (first, second)]
    assert len(images[0]) == 6
    for key, path in images[0].items():
        ours, theirs = (pixels(open_image(one)) for one in (path, images[1][key]))
        assert np.abs(ours - theirs).max() <= 1


def test_metadata_suffices_to_regenerate_an_image(pipe, tmp_path):
    (row,) = fast([{"prompt": "二つのカップ"}], pipe, tmp_path, seed=-3, size="64x48", system="base")
    record = from_metadata(read_metadata(row["image"]))
    assert record.plan == Plan(solver="euler", steps=2)
    assert record.size == (64, 48)
    job = Job(record.prompt, record.seed, record.number)
    (again,) = pipe.generate([job], record.plan, record.size, record.system)
    assert np.array_equal(pixels(again), pixels(open_image(row["image"])))


def test_incomplete_metadata_is_rejected():
    with pytest.raises(LuminaError, match="its metadata lacks 'seed'"):
        from_metadata({"prompt": "x"})
    with pytest.raises(LuminaError, match="its metadata lacks 'size'"):
        from_metadata({"prompt": "x", "seed": 0, "number": 0, "model": "nano"})


class Encoder:
    """A text encoder that records its inputs."""

    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        (text,) = texts
        return torch.full((1, len(text) + 1, 2), float(len(text))), torch.ones(1, len(text) + 1)


def test_text_cache_encodes_each_string_once_and_alone():
    encoder = Encoder()
    features = TextCache(encoder.encode)
    first, mask = features.encode(["ab", "", "ab"])
    assert encoder.asked == ["ab", ""]
    assert mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert first[0].tolist() == first[2].tolist() == [[2.0, 2.0]] * 3
    features.encode(["ab", "abc"])
    assert encoder.asked == ["ab", "", "abc"]
    features.encode([str(number) for number in range(300)])
    assert len(features.kept) == 256


def test_prompt_is_encoded_once_for_any_count_and_batch(tiny_folder, tmp_path):
    pipe, asked = load_pipeline(tiny_folder), []
    pipe.text_cache = TextCache(lambda texts: asked.extend(texts) or pipe.text.encode(texts))
    fast([{"prompt": "two cups"}, {"prompt": "a ball"}], pipe, tmp_path, count=3, batch=2, system="empty")
    assert sorted(asked) == ["", "a ball", "two cups"]


def test_rows_of_mixed_sizes_and_lengths_keep_their_order(pipe, tmp_path):
    sizes = ["64x48", "48x64", None, "64x48"] * 3
    words = ["a ball", "two cups", "a red car left of a blue ball", "cups"]
    rows = [
        {"prompt": words[n * 7 % 4], "seed": n} | ({"size": size} if size else {})
        for n, size in enumerate(sizes)
    ]
    drawn = fast(rows, pipe, tmp_path / "a", batch=2)
    assert [row["seed"] for row in drawn] == list(range(12))
    assert [row["size"] for row in drawn] == [size or "64x64" for size in sizes]
    for row in (drawn[0], drawn[5], drawn[10]):
        (alone,) = fast([{k: row[k] for k in ("prompt", "seed", "size")}], pipe, tmp_path / "b")
        ours, theirs = (pixels(open_image(one["image"])) for one in (row, alone))
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1


def test_negative_prompt_changes_the_image_unless_empty(pipe, tmp_path):
    rows = [{"prompt": "two cups", "negative": text} for text in ("", None, "a ball", "a red car")]
    rows.append({"prompt": "two cups"})
    plan = {"solver": "euler", "steps": 2, "guidance": 40.0, "renorm": None}
    pictures = [pixels(open_image(row["image"])) for row in generate_rows(rows, pipe, tmp_path, plan=plan)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.abs(pictures[0] - pictures[4]).max() <= 1
    assert np.abs(pictures[0] - pictures[2]).max() > 1
    assert np.abs(pictures[2] - pictures[3]).max() > 1
    (alone,) = generate_rows([{"prompt": "two cups"}], pipe, tmp_path / "b", negative="a ball", plan=plan)
    assert np.abs(pixels(open_image(alone["image"])) - pictures[2]).max() <= 1


def test_existing_images_are_not_generated_again(pipe, tmp_path, monkeypatch):
    rows = [{"prompt": word, "n": n} for n, word in enumerate(("two cups", "a ball", "a car"))]
    first = fast(rows, pipe, tmp_path)
    Path(first[1]["image"]).unlink()
    times = {row["image"]: Path(row["image"]).stat().st_mtime_ns for row in (first[0], first[2])}
    jobs = []
    draw = Pipeline.generate_batch
    monkeypatch.setattr(
        Pipeline, "generate_batch", lambda self, some, *rest: jobs.extend(some) or draw(self, some, *rest)
    )
    notes = []
    second = fast(rows, pipe, tmp_path, progress=lambda *done, **_: notes.append(done))
    assert [job.prompt for job in jobs] == ["two cups", "a ball", "a car"]  # one batch, as in the first run
    assert [row.get("resumed", False) for row in second] == [True, False, True]
    assert [{**row, "resumed": 0} for row in second] == [{**row, "resumed": 0} for row in first]
    assert times == {path: Path(path).stat().st_mtime_ns for path in times}
    assert notes == [(0, 2), (0, 2), (0, 2), (1, 2)]
    changed = fast([{**rows[0], "negative": "a ball"}], pipe, tmp_path)
    assert "resumed" not in changed[0]
    assert changed[0]["image"].endswith("-2.png")


def test_each_image_of_a_batch_is_saved_and_counted_before_the_next(pipe, tmp_path):
    """Images are rows as soon as they are saved; a consumer that stops early loses none of the batch."""
    rows, notes = [{"prompt": word} for word in ("two cups", "a ball", "a car")], []

    def start(out):
        notes.clear()
        track = {"progress": lambda done, *_, **step: notes.append((done, step))}
        return generate_rows(rows, pipe, out, batch=3, plan={"solver": "euler", "steps": 2}, **track)

    seen = []
    for row in start(tmp_path / "all"):
        seen.append((Path(row["image"]).name, len(list((tmp_path / "all").iterdir())), notes[-1][0]))
    assert seen == [
        ("00000-two-cups-s0.png", 1, 1),
        ("00001-a-ball-s0.png", 2, 2),
        ("00002-a-car-s0.png", 3, 3),
    ]
    assert [step for _, step in notes[-3:]] == [{"ahead": left, "label": "images"} for left in (2, 1, 0)]
    cut = start(tmp_path / "cut")
    next(cut)
    cut.close()
    for path in (tmp_path / "all").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_interrupted_run_keeps_complete_images_and_resumes(pipe, tmp_path, monkeypatch):
    rows = [{"prompt": word} for word in ("two cups", "a ball", "a car")]
    whole = fast(rows, pipe, tmp_path / "whole", batch=1)
    save, calls = PIL.Image.Image.save, []

    def interrupted(self, aside, **settings):
        save(self, aside, **settings)
        calls.append(aside)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fast(rows, pipe, tmp_path / "cut", batch=1)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["00000-two-cups-s0.png"]
    monkeypatch.undo()
    again = fast(rows, pipe, tmp_path / "cut", batch=1)
    assert [row.get("resumed", False) for row in again] == [True, False, False]
    for ours, theirs in zip(again, whole, strict=True):
        assert np.array_equal(pixels(open_image(ours["image"])), pixels(open_image(theirs["image"])))


@pytest.mark.parametrize("saved", [1, 2, 4])
def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(pipe, tmp_path, monkeypatch, saved):
    """Images of a batch depend on the whole batch, as rounding does."""

    def draw(self, jobs, *rest):
        mark = sum(len(job.prompt) * (job.number + 1) for job in jobs)
        return [PIL.Image.new("RGB", (16, 16), (mark % 251, len(job.prompt), job.number)) for job in jobs]

    def run_all(out):
        rows = [
            {"prompt": word, "size": size} for word, size in zip("abcde", (64, 64, 96, 64, 96), strict=True)
        ]
        fast(rows, pipe, out, batch=3, count=2)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    calls, save = [], PIL.Image.Image.save

    def interrupted(self, aside, **settings):
        calls.append(aside)
        if len(calls) == saved + 1:
            raise KeyboardInterrupt
        save(self, aside, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "generate_batch", draw)
        whole = run_all(tmp_path / "whole")
        with monkeypatch.context() as cut:
            cut.setattr("PIL.Image.Image.save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_all(tmp_path / "cut")
        assert run_all(tmp_path / "cut") == whole
    assert len(whole) == 10


@pytest.mark.parametrize(("solver", "call"), [("euler", "call 2 of 3 "), ("midpoint", "call 3 of 6 ")])
def test_non_finite_latents_stop_the_run_and_keep_finished_images(tiny_folder, tmp_path, solver, call):
    pipe = load_pipeline(tiny_folder)
    forward = pipe.transformer.forward

    def broken(latents, t, *rest, **more):
        velocity = forward(latents, t, *rest, **more)
        if broken.on and t[0] > 0.2:
            velocity[0, 0, 0, 0] = float("nan")
        return velocity

    broken.on, pipe.transformer.forward = False, broken
    settings = {"plan": {"solver": solver, "steps": 3, "shift": 1.0}, "batch": 1}
    drawing = generate_rows([{"prompt": "two cups"}, {"prompt": "a ball"}], pipe, tmp_path, **settings)
    next(drawing)
    broken.on = True
    with pytest.raises(LuminaError, match=rf"^NaN or infinity in the latents of 'a ball', seed 0, .*{call}"):
        next(drawing)
    assert [path.name for path in tmp_path.iterdir()] == ["00000-two-cups-s0.png"]


def test_overflow_of_guidance_in_the_last_call_is_reported(pipe):
    with pytest.raises(
        LuminaError, match=r"at call 1 of 1 \(step 1, t 0.0000\); the weights are damaged, or"
    ):
        pipe("two cups", solver="euler", steps=1, guidance=1e300, renorm=None, guide_until=1.0)


def test_file_names_are_safe_and_unique(pipe, tmp_path):
    rows = [{"prompt": "a", "key": "../../x"}, {"prompt": "b", "key": "../../x"}, {"prompt": "../" * 200}]
    names = [Path(row["image"]).relative_to(tmp_path).name for row in fast(rows, pipe, tmp_path)]
    assert names == ["x-s0.png", "x-s0-2.png", "00002-s0.png"]
    assert slug("Ein Röhrchen, 红色的 car!") == "ein-röhrchen-红色的-car"
    assert len(slug("長" * 500).encode()) <= 180


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
def test_only_the_same_record_replaces_a_file(pipe, tmp_path, format):
    def draw(prompts, **settings):
        rows = fast(
            [{"prompt": prompt, "key": "x"} for prompt in prompts], pipe, tmp_path, format=format, **settings
        )
        return [Path(row["image"]).stem for row in rows]

    assert draw("ab") == ["x-s0", "x-s0-2"]
    assert draw("a", size="64x48") == ["x-s0-3"]
    assert draw("a", system="base") == ["x-s0-4"]
    for _ in range(2):
        assert draw("ab") == ["x-s0", "x-s0-2"]
        assert draw("a", size="64x48") == ["x-s0-3"]
    assert len(list(tmp_path.iterdir())) == 4


DRAWING, SAVING = (Pipeline, "generate_batch"), (PIL.Image.Image, "save")


def meanwhile(monkeypatch, happen, doing=DRAWING):
    """Call `happen` once, while an image with an assigned name is generated or saved."""
    do, happened = getattr(*doing), []

    def watched(self, *asked, **settings):
        if not happened:
            happened.append(True)
            happen()
        return do(self, *asked, **settings)

    monkeypatch.setattr(*doing, watched)


def refused(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("doing", [DRAWING, SAVING], ids=lambda doing: doing[1])
@pytest.mark.parametrize("links", [True, False])
def test_concurrent_runs_in_one_folder_keep_all_images(pipe, tmp_path, monkeypatch, links, doing):
    if not links:  # as on exFAT
        monkeypatch.setattr("os.link", refused)
    theirs, other = [], [{"prompt": "two cups", "key": "x"}]
    meanwhile(monkeypatch, lambda: theirs.extend(fast(other, pipe, tmp_path)), doing)
    rows = [{"prompt": "a ball", "key": "x"}, {"prompt": "a car", "key": "x"}]
    ours = fast(rows, pipe, tmp_path, batch=1)
    names = [Path(row["image"]).name for row in theirs + ours]
    assert names == ["x-s0.png", "x-s0-3.png", "x-s0-2.png"]
    assert [read_metadata(row["image"])["prompt"] for row in theirs + ours] == ["two cups", "a ball", "a car"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("doing", [DRAWING, SAVING], ids=lambda doing: doing[1])
def test_concurrent_runs_of_one_image_write_one_file(pipe, tmp_path, monkeypatch, doing):
    rows = [{"prompt": "two cups", "key": "x"}]
    meanwhile(monkeypatch, lambda: fast(rows, pipe, tmp_path), doing)
    (row,) = fast(rows, pipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x-s0.png"] == [Path(row["image"]).name]


def test_images_are_saved_without_hard_links(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", refused)
    for force in (False, True):
        (row,) = fast([{"prompt": "two cups", "key": "x"}], pipe, tmp_path, force=force)
        assert read_metadata(row["image"])["prompt"] == "two cups"
    assert [path.name for path in tmp_path.iterdir()] == ["x-s0.png"]


def test_output_folder_replaced_by_a_file_is_reported(pipe, tmp_path, monkeypatch):
    def happen():
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_text("")

    meanwhile(monkeypatch, happen)
    with pytest.raises(LuminaError, match=r"cannot write .*00000-a-s0.png: "):
        fast([{"prompt": "a"}], pipe, tmp_path / "out")


def test_rows_drop_stale_keys_of_earlier_images(pipe, tmp_path):
    rows = [{"prompt": "two cups " * 60, "id": 1}]
    fast(rows, pipe, tmp_path)
    ((first,), plain) = fast(rows, pipe, tmp_path), fast([{"prompt": "two cups"}], pipe, tmp_path / "b")
    assert first["resumed"] is True
    assert first["truncated"] > 0
    stale = first | {
        "prompt": "two cups",
        "negative_truncated": 3,
        "cached": {"rows": 4},
        "model_reason": "?",
    }
    (row,) = fast([stale], pipe, tmp_path / "c")
    assert set(row) == {*plain[0], "id"}


def test_other_models_plans_and_foreign_files_keep_their_names(pipe, tiny_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x-s0.png").write_text("somebody's own")
    shutil.copytree(tiny_folder, tmp_path / "other")
    rows, names = [{"prompt": "a", "key": "x"}], []
    for model in (pipe, tmp_path / "other", pipe):
        for steps in (1, 2):
            (row,) = generate_rows(rows, model, tmp_path / "out", plan={"solver": "euler", "steps": steps})
            names.append(Path(row["image"]).stem)
    assert names == ["x-s0-2", "x-s0-3", "x-s0-4", "x-s0-5", "x-s0-2", "x-s0-3"]
    assert (tmp_path / "out" / "x-s0.png").read_text() == "somebody's own"


def test_other_weights_under_one_name_get_another_file(tiny_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_folder, run)

    def draw():
        (row,) = fast([{"prompt": "a", "key": "x"}], run, tmp_path / "out")
        return Path(row["image"]).stem

    assert [draw(), draw()] == ["x-s0", "x-s0"]
    weights = next((run / "transformer").glob("*.safetensors"))
    save_file({name: value * 2 for name, value in load_file(weights).items()}, weights)
    assert [draw(), draw()] == ["x-s0-2", "x-s0-2"]


def test_metadata_without_weights_is_readable(pipe, tmp_path):
    (row,) = fast([{"prompt": "a"}], pipe, tmp_path)
    metadata = read_metadata(row["image"])
    assert metadata.pop("weights") == pipe.weights
    assert from_metadata(metadata).weights is None


def test_row_of_a_long_prompt_contains_the_truncated_tokens(pipe, tmp_path):
    (row,) = fast([{"prompt": "two cups " * 60}], pipe, tmp_path, system="empty")
    assert row["truncated"] == 1 + 540 - 256


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([{"prompt": "a"}, {"text": "b", "id": 1}], {}, "row 2 has no 'prompt', only text, id"),
        ([{"prompt": " "}], {}, "row 1: 'prompt' is empty"),
        ([{"prompt": 3}], {}, "row 1: 'prompt' is 3, but must be text"),
        ([{"prompt": "a", "seed": "x"}], {}, "row 1: 'seed' is 'x', but must be a whole number"),
        ([{"prompt": "a"}], {"size": "100x64"}, "size 100x64: width 100 is not a multiple of 16 up to 8192; nearest: 96 or 112"),
        ([{"prompt": "a"}], {"size": "2048x64"}, "size 2048x64: width 2048 is not a multiple of 16 up to 1024; nearest: 1024"),
        ([{"prompt": "a"}], {"size": "big"}, "size 'big' is not WIDTHxHEIGHT, such as 1024x768, a ratio such as 16:9, or one of square, landscape, portrait, wide, tall"),
        ([{"prompt": "a", "size": "9:0"}], {}, "row 1: size '9:0' is not WIDTHxHEIGHT, such as 1024x768, a ratio such as 16:9, or one of square, landscape, portrait, wide, tall"),
        ([{"prompt": "a", "negative": 3}], {}, "row 1: 'negative' is 3, but must be text"),
        ([{"prompt": "a"}], {"system": "reel"}, "unknown system prompt 'reel'; did you mean 'real'?"),
        ([{"prompt": "a"}], {"format": "tiff"}, "unknown image format 'tiff'; choose from png, webp, jpg, avif"),
    ],
)  # fmt: skip
def test_invalid_rows_and_settings_are_one_line_errors(rows, settings, words, pipe, tmp_path):
    with pytest.raises(LuminaError) as caught:
        fast(rows, pipe, tmp_path, **settings)
    assert str(caught.value) == words


def test_full_disk_is_reported_and_leaves_no_file(pipe, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(LuminaError, match=r"cannot write .*00000-a-s0.png: No space left on device"):
        fast([{"prompt": "a"}], pipe, tmp_path)
    assert not list(tmp_path.iterdir())


def test_sizes_are_parsed_from_text_numbers_and_pairs():
    assert parse_size("1024x768") == (1024, 768)
    for size in ("1:1:1", "16:9@", "wide@x", "oval", True, (1, 2, 3), 64.0):
        with pytest.raises(UsageError, match="is not WIDTHxHEIGHT, such as 1024x768, a ratio such as 16:9"):
            check_size(size)
    assert parse_size("512") == parse_size(512) == parse_size((512, 512)) == (512, 512)


def test_unknown_model_suggests_the_nearest_name():
    with pytest.raises(UsageError, match="unknown model 'nanoo'; did you mean 'nano'"):
        find_model("nanoo")


def test_incomplete_model_folder_lists_missing_files(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "vae")
    (tmp_path / "m" / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(LuminaError, match=r"m is incomplete; missing: vae/, tokenizer/tokenizer.json"):
        find_model(tmp_path / "m")
    with pytest.raises(LuminaError, match="is not a model folder; it must contain transformer/, vae/"):
        find_model(tmp_path)


def test_run_folder_resolves_to_its_model(tiny_folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: nano\n")
    with pytest.raises(LuminaError, match=r"has no checkpoint yet; train one with `lumina train ... out=.*`"):
        find_model(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "model")
    assert find_model(tmp_path) == tmp_path / "model"


def test_error_of_a_damaged_component_names_it(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "m")
    weights = next((tmp_path / "m" / "text_encoder").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LuminaError, match=r"m/text_encoder/\S+ is truncated within its header") as caught:
        load_pipeline(tmp_path / "m")
    assert "\n" not in str(caught.value)
    path = tmp_path / "m" / "text_encoder" / "config.json"
    path.write_text("[]")
    weights.write_bytes(next((tiny_folder / "text_encoder").glob("*.safetensors")).read_bytes())
    with pytest.raises(LuminaError, match="m/text_encoder") as caught:
        load_pipeline(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_auto_reports_its_choice_and_the_reason(tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(locate, "find_nano", lambda: tiny_folder)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(MODELS, "nano", "lumina_cli.core.models.locate:find_nano")
    choice = choose_model("auto")
    assert choice.name == "nano"
    assert choice.reason == (
        "model auto: nano, because the weights of lumina-image-2 are not on this machine and there is no CUDA device"
    )


def test_unreachable_hub_model_is_a_one_line_error(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network\nand a second line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        LuminaError, match=r"'org/name' is not a local folder .* \(no network\); the model nano works off"
    ):
        find_model("org/name")
