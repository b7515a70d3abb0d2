"""Training sizes and crops."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.buckets import best_size, crop_image, crop_sizes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "official_nextdit_tiny.json").read_text())[
    "crop_sizes"
]


@pytest.mark.parametrize("resolution", GOLDEN)
def test_crop_sizes_are_the_official_ones(resolution):
    assert [list(size) for size in crop_sizes(int(resolution))] == GOLDEN[resolution]


@pytest.mark.parametrize("resolution", [64, 128, 192, 256])
def test_a_square_image_keeps_its_shape(resolution):
    width, height = best_size(300, 300, resolution)
    assert width == height == resolution


def test_a_wide_image_gets_a_wide_crop():
    assert best_size(1000, 250, 256) == (512, 128)
    assert best_size(250, 1000, 256) == (128, 512)


def test_latents_of_every_size_pool_by_four_into_whole_patches():
    assert all((side // 8 // 4) % 2 == 0 for size in crop_sizes(512) for side in size)


@pytest.mark.parametrize("resolution", [0, 32, 96])
def test_a_size_off_the_grid_is_an_error(resolution):
    with pytest.raises(UsageError, match=f"size {resolution} is not a multiple of 64"):
        crop_sizes(resolution)


@pytest.mark.parametrize("size", [(128, 128), (300, 101), (20, 90)])
def test_a_crop_has_the_requested_size_and_keeps_the_center(size):
    picture = Image.new("RGB", size, "black")
    picture.paste("red", (size[0] // 2 - 5, size[1] // 2 - 5, size[0] // 2 + 5, size[1] // 2 + 5))
    crop = crop_image(picture, (64, 64))
    assert crop.size == (64, 64)
    assert crop.getpixel((32, 32))[0] > 200
