"""Conversion to sRGB by the embedded ICC profile; a broken profile is ignored."""

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageCms

LARGEST = 8 << 20  # bytes; anything larger is treated as a broken profile
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}  # mode -> space


@lru_cache(maxsize=64)
def classify_profile(profile: bytes, space: str) -> str:
    """Return "srgb", "icc" (another profile of this space: "RGB ", "GRAY", "CMYK") or "icc_broken"."""
    if len(profile) > LARGEST:
        return "icc_broken"
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        if opened.profile.xcolor_space != space:
            return "icc_broken"
        name = ImageCms.getProfileDescription(opened)
        if space == "RGB " and ("srgb" in name.lower() or name.strip() == "c2"):  # c2 is compact sRGB
            return "srgb"
        _transform(profile, {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space])
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return "icc_broken"
    return "icc"


def expected_space(mode: str) -> str:
    """Return the color space that the profile of an image of this Pillow mode must have."""
    return _SPACES.get(mode, "RGB ")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    target = "RGBA" if mode == "RGBA" else "RGB"
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of 8 bits per channel to sRGB; unchanged if its profile is missing, sRGB or broken.

    Transparency is kept. Colors outside of sRGB are mapped with Pillow's default, the perceptual intent.
    """
    if not profile or classify_profile(profile, expected_space(image.mode)) != "icc":
        return image
    if image.mode == "LA":
        grey, alpha = image.split()
        image = ImageCms.applyTransform(grey, _transform(profile, "L"))
        image.putalpha(alpha)
        return image
    return ImageCms.applyTransform(image, _transform(profile, image.mode))
