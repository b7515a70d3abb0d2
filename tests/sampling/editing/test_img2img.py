"""Image-to-image and inpainting: start of an edit, pixels outside the mask, errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import read_metadata
from lumina_cli.core.registry import GUIDANCE, SOLVERS
from lumina_cli.core.sampling.editing.img2img import (
    Edit,
    EditedPlan,
    EditHook,
    composite_original,
    image_size,
    pixel_hash,
    read_edit,
    to_pixels,
)
from lumina_cli.core.sampling.output.generated import to_images
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.request import Job
from lumina_cli.core.sampling.runner import generate_rows

SHAPE = (2, 16, 8, 8)
JOBS = [Job("two cups", 3), Job("a ball", 4)]


def noise_picture(size=(64, 64), seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def box_mask(size=(64, 64), box=(16, 16, 48, 48)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


def velocity(x, t):
    return torch.sin(3 * x) - t * x


def paired(x, t):
    captioned, free = x.chunk(2)
    return torch.cat([velocity(captioned, t), torch.cos(free)])


def states(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(1, *SHAPE[1:], generator=generator)


def last(plan, noise):
    *_, x = plan.solve(velocity, paired, noise)
    return x


@pytest.mark.parametrize("guide", GUIDANCE)
@pytest.mark.parametrize("solver", SOLVERS)
def test_edit_from_pure_noise_equals_the_plan(solver, guide):
    plan = Plan(solver, 5, guide=guide, guide_until=0.7, guide_unit="steps")
    noise, init = states()
    edited = EditedPlan(**plan.to_json(), start=0.0, init=init)
    assert edited.times() == plan.times()
    assert edited.calls() == plan.calls()
    assert torch.equal(last(edited, noise), last(plan, noise))
    everywhere = EditedPlan(**plan.to_json(), init=init, mask=torch.ones(1, 1, 8, 8, dtype=torch.bool))
    assert torch.equal(last(everywhere, noise), last(plan, noise))


@pytest.mark.parametrize("solver", SOLVERS)
def test_edit_keeps_the_times_after_its_start(solver):
    plan = Plan(solver, 6, shift=3.0, guide_until=1.0)
    noise, init = states()
    edited = EditedPlan(**plan.to_json(), start=0.4, init=init)
    assert edited.times() == [0.4, *(t for t in plan.times() if t > 0.4)]
    assert len(edited.calls()) == plan.calls_per_step * (len(edited.times()) - 1)
    seen = []

    def watched(x, t):
        seen.append((t, x[: len(noise)]))
        return paired(x, t)

    list(edited.solve(velocity, watched, noise))
    assert seen[0][0] == 0.4
    torch.testing.assert_close(seen[0][1], 0.4 * init + 0.6 * noise)


def test_start_close_to_a_time_is_not_duplicated():
    plan = Plan("euler", 4, shift=1.0)
    assert EditedPlan(**plan.to_json(), start=1 - 0.5).times() == [0.5, 0.75, 1.0]
    assert EditedPlan(**plan.to_json(), start=1 - (0.5 - 1e-9)).times() == [pytest.approx(0.5), 0.75, 1.0]


def test_guidance_in_steps_counts_from_the_noise():
    plan = Plan("euler", 10, shift=1.0, guide_unit="steps", guide_until=0.5)
    edited = EditedPlan(**plan.to_json(), start=0.3, init=states()[1])
    assert [call.branches for call in edited.calls()] == [2, 2, 1, 1, 1, 1, 1]
    assert edited.to_json() == plan.to_json()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", [0.0, 0.35])
def test_state_outside_the_mask_is_the_noised_image(solver, start):
    plan = Plan(solver, 8, guidance=5.0, guide_until=0.6)
    noise, init = states()
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:5, 3:7] = True
    edited = EditedPlan(**plan.to_json(), start=start, init=init, mask=mask)
    first, *times = edited.times()
    outside = ~mask.expand(SHAPE)
    near = (
        1e-5 if start or not first else 2e-3
    )  # dpm and unipc treat the noise as the state at their first time
    for t, x in zip(times, edited.solve(velocity, paired, noise), strict=True):
        torch.testing.assert_close(x[outside], (t * init + (1 - t) * noise)[outside], atol=near, rtol=0)
    assert t == 1.0
    assert (x - init)[~outside].abs().mean() > 0.1


@pytest.mark.slow
def test_strength_1_ignores_the_image(pipe):
    edit = pipe.with_hooks(EditHook(Edit(noise_picture(), 1.0)))
    assert [one.tobytes() for one in edit.generate(JOBS)] == [one.tobytes() for one in pipe.generate(JOBS)]


def test_strength_0_returns_the_reconstructed_image(pipe):
    picture = noise_picture()
    expected = to_images(pipe.vae.decode(pipe.vae.encode(to_pixels(picture))))[0]
    for one in pipe.with_hooks(EditHook(Edit(picture, 0.0))).generate(JOBS):
        assert np.abs(np.asarray(one, int) - np.asarray(expected, int)).max() <= 1


def test_lower_strength_stays_closer_to_the_image(pipe):
    picture = noise_picture()
    through = pipe.with_hooks(EditHook(Edit(picture, 0.0))).generate(JOBS)[0]
    gaps = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        drawn = pipe.with_hooks(EditHook(Edit(picture, strength))).generate(JOBS)[0]
        gaps.append(np.abs(np.asarray(drawn, float) - np.asarray(through, float)).mean())
    assert gaps == sorted(gaps)
    assert gaps[0] > 0


def test_batch_of_edits_equals_single_edits(pipe):
    edit = pipe.with_hooks(EditHook(Edit(noise_picture(), 0.7, box_mask())))
    together, alone = edit.generate(JOBS), [edit.generate([job])[0] for job in JOBS]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_pixels_outside_the_mask_are_unchanged(pipe):
    picture, mask = noise_picture(), box_mask(box=(10, 3, 41, 60))
    drawn = pipe.with_hooks(EditHook(Edit(picture, 1.0, mask))).generate(JOBS)
    outside = np.asarray(mask) == 0
    for one in drawn:
        assert (np.asarray(one)[outside] == np.asarray(picture)[outside]).all()
        assert (np.asarray(one)[~outside] != np.asarray(picture)[~outside]).mean() > 0.9


@pytest.mark.parametrize("width", [1, 2, 5, 30])
def test_mask_edge_is_soft_and_its_middle_fully_generated(width):
    old, new = Image.new("RGB", (64, 64), "black"), Image.new("RGB", (64, 64), "white")
    mask = box_mask(box=(10, 10, 10 + width, 50))
    row = np.asarray(composite_original(new, old, mask, 8))[30, :, 0].astype(int)
    assert row[:10].max() == row[10 + width :].max() == 0
    assert row.max() == 255
    assert np.abs(np.diff(row)).max() <= (30 if width == 30 else 255)


def test_on_step_counts_steps_of_the_original_plan(pipe):
    seen = []
    edit = pipe.with_hooks(EditHook(Edit(noise_picture(), 0.5)))
    plan = Plan("euler", 6, shift=1.0)
    edit.generate(JOBS, plan, on_step=lambda done, latents: seen.append(done))
    assert seen == [4, 5, 6]


def test_metadata_of_edits_contains_the_edit(pipe, tmp_path):
    noise_picture().save(tmp_path / "p.png")
    drawn = []
    for strength in (0.5, 0.5, 0.8):
        edit = pipe.with_hooks(EditHook(read_edit(tmp_path / "p.png", strength=strength)))
        drawn += generate_rows([{"prompt": "two cups"}], edit, tmp_path / "out", plan={"steps": 2})
    assert [row.get("resumed", False) for row in drawn] == [False, True, False]
    assert read_metadata(drawn[1]["image"])["edit"]["strength"] == 0.5
    assert drawn[0]["image"] == drawn[1]["image"] != drawn[2]["image"]


def test_edit_images_are_rotated_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    noise_picture((64, 48)).save(tmp_path / "p.jpg", exif=exif)
    box_mask((48, 64)).save(tmp_path / "m.png")
    edit = read_edit(tmp_path / "p.jpg", tmp_path / "m.png")
    assert edit.image.size == edit.mask.size == (48, 64)
    assert (edit.strength, read_edit(tmp_path / "p.jpg").strength) == (1.0, 0.6)


def test_mask_of_another_size_is_rejected(tmp_path):
    noise_picture().save(tmp_path / "p.png")
    box_mask((32, 64)).save(tmp_path / "m.png")
    with pytest.raises(
        UsageError, match=r"the mask .*m.png is 32x64, but .*p.png is 64x64; they must have the same size"
    ):
        read_edit(tmp_path / "p.png", tmp_path / "m.png")


def test_black_mask_is_rejected(tmp_path):
    noise_picture().save(tmp_path / "p.png")
    Image.new("L", (64, 64)).save(tmp_path / "m.png")
    with pytest.raises(LuminaError, match=r"the mask .*m.png is entirely black; white areas are regenerated"):
        read_edit(tmp_path / "p.png", tmp_path / "m.png")


def layer(mask: Image.Image, color=(255, 255, 255)) -> Image.Image:
    """Return a layer of one color whose alpha channel is the mask."""
    image = Image.new("RGBA", mask.size, color)
    image.putalpha(mask)
    return image


def grey_and_alpha(mask: Image.Image) -> Image.Image:
    return Image.merge("LA", (mask, Image.new("L", mask.size, 255)))


def on_transparent_red(mask: Image.Image) -> Image.Image:
    """White and black regions, and a red rest that is transparent."""
    pixels = np.array(Image.merge("RGBA", (mask, mask, mask, Image.new("L", mask.size, 255))))
    pixels[:8] = (255, 0, 0, 0)
    return Image.fromarray(pixels)


def with_transparent_color(mask: Image.Image) -> Image.Image:
    """A palette image whose black is transparent."""
    image = mask.convert("1").convert("P")
    image.info["transparency"] = 0
    return image


def in_16_bits(mask: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    "convert",
    [
        layer, lambda mask: layer(mask, (0, 0, 0)), lambda mask: layer(mask, (200, 30, 30)), grey_and_alpha,
        on_transparent_red, with_transparent_color, in_16_bits, lambda mask: mask.convert("RGB"),
        lambda mask: mask.convert("1"), lambda mask: Image.merge("RGBA", (mask,) * 4),
    ],
)  # fmt: skip
def test_a_layer_is_the_same_mask_as_its_grey_twin(convert, tmp_path):
    noise_picture().save(tmp_path / "p.png")
    box_mask().save(tmp_path / "grey.png")
    convert(box_mask()).save(tmp_path / "other.png")
    grey, other = (read_edit(tmp_path / "p.png", tmp_path / name) for name in ("grey.png", "other.png"))
    assert other.mask.tobytes() == grey.mask.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "1"])
def test_white_mask_is_rejected(mode, tmp_path):
    noise_picture().save(tmp_path / "p.png")
    Image.new("L", (64, 64), 255).convert(mode).save(tmp_path / "m.png")
    with pytest.raises(LuminaError, match=r"m\.png is entirely white; omit it to regenerate the whole image"):
        read_edit(tmp_path / "p.png", tmp_path / "m.png")
    assert read_edit(tmp_path / "p.png", tmp_path / "m.png", recorded=True).mask.getextrema() == (255, 255)


@pytest.mark.parametrize("mode", ["L", "RGBA", "1"])
def test_black_or_transparent_mask_is_rejected(mode, tmp_path):
    noise_picture().save(tmp_path / "p.png")
    mask = Image.new("L", (64, 64), 0)
    (layer(mask) if mode == "RGBA" else mask.convert(mode)).save(tmp_path / "m.png")
    with pytest.raises(LuminaError, match=r"m\.png is entirely black; white areas are regenerated"):
        read_edit(tmp_path / "p.png", tmp_path / "m.png")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([128], "every pixel of the mask image is 128, which is white (above 127)"),
        ([1], "every pixel of the mask image is 1, which is black (below 128)"),
        ([0, 1], "has only the values 0 and 1, all black (below 128): scale them to 0 and 255"),
        ([0, 5, 100], "has only the values 0 to 100, all black (below 128): scale them to 0 and 255"),
        ([200, 255], "has only the values 200 and 255, all white (above 127): omit it to regenerate"),
    ],
)
def test_masks_on_one_side_are_described_by_their_values(values, message):
    pixels = np.resize(np.array(values, np.uint8), (64, 64))
    with pytest.raises(LuminaError) as caught:
        read_edit(noise_picture(), Image.fromarray(pixels))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (np.zeros((64, 64, 3), np.uint8), "an array"),
        (torch.zeros(3, 8, 8), "an array"),
        (b"x", "bytes"),
        (3, "int"),
    ],
)
def test_images_that_are_neither_files_nor_pil_images_are_refused(wrong, kind):
    with pytest.raises(UsageError) as caught:
        read_edit(wrong)
    assert str(caught.value) == f"init must be a file or a PIL image, not {kind}"
    with pytest.raises(UsageError) as caught:
        read_edit(noise_picture(), wrong)
    assert str(caught.value) == f"mask must be a file or a PIL image, not {kind}"


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan"), "much", True])
def test_invalid_strength_is_rejected(strength, tmp_path):
    with pytest.raises(
        UsageError, match=r"strength must be between 0 \(unchanged\) and 1 \(pure noise\), not "
    ):
        read_edit(tmp_path / "p.png", strength=strength)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((128, 128), (128, 128)),
        ((192, 96), (192, 96)),  # a multiple of the token size, slightly larger than the default
        ((129, 128), (128, 128)),
        ((640, 640), (128, 128)),
        ((1600, 900), (176, 96)),
        ((900, 1200), (112, 144)),
        ((16, 16), (128, 128)),
    ],
)
def test_image_size_is_valid_for_the_model(own, expected):
    assert image_size(own, (128, 128), 16) == expected


def test_scaling_and_cropping_are_reported_once(pipe):
    notes = []
    edit = pipe.with_hooks(EditHook(Edit(noise_picture((200, 160)), 0.3, name="p.png"), notes.append))
    assert edit.default_size == (64, 48)
    assert edit.generate(JOBS)[0].size == edit.generate(JOBS)[0].size == (64, 48)
    assert notes == ["p.png: 200x160 scaled to 64x48, 3 pixels of its height cropped"]


def test_edit_settings_contain_names_and_fingerprints(tmp_path):
    noise_picture().save(tmp_path / "p.png")
    box_mask().save(tmp_path / "m.png")
    settings = read_edit(tmp_path / "p.png", tmp_path / "m.png", 0.5).settings()
    assert settings["strength"] == 0.5
    assert settings["pixels"] == pixel_hash(noise_picture())
    assert settings["mask_pixels"] != pixel_hash(box_mask(box=(0, 0, 5, 5)))


@pytest.mark.parametrize("option", ["--init", "--mask", "--from"])
@pytest.mark.parametrize("url", ["http://me:hunter22@h/a.png", "s3://h/a.png?sig=hunter22"])
def test_urls_are_refused_without_their_passwords(option, url, tmp_path, capsys):
    from lumina_cli.cli.app import run

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    line = {"--init": ["ball", "--init", url], "--from": ["--from", url]}.get(
        option, ["ball", "--init", str(tmp_path / "a.png"), "--mask", url]
    )
    assert run(["sample", *line, "--model", "nano"]) == 1
    err = capsys.readouterr().err
    assert "a URL, which is not read here; download it and give the file" in err
    assert "hunter22" not in err
