"""Colours of pictures as sRGB: what an embedded ICC profile says is heeded, a broken one is ignored."""

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageCms

LARGEST = 8 << 20  # bytes; a profile larger than that is no profile
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}  # of a mode


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
        if space == "RGB " and ("srgb" in name.lower() or name.strip() == "c2"):  # the name of a tiny sRGB
            return "srgb"
        _transform(profile, {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space])
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return "icc_broken"
    return "icc"


def expected_space(mode: str) -> str:
    """Return the colour space that the profile of a picture of this mode must have."""
    return _SPACES.get(mode, "RGB ")


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    target = "RGBA" if mode == "RGBA" else "RGB"
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture of 8 bits a channel in sRGB; as it is where its profile is none, sRGB or broken.

    Transparency stays. Colours that sRGB lacks are mapped perceptually, as Pillow's default is.
    """
    if not profile or classify_profile(profile, expected_space(image.mode)) != "icc":
        return image
    if image.mode == "LA":
        grey, alpha = image.split()
        image = ImageCms.applyTransform(grey, _transform(profile, "L"))
        image.putalpha(alpha)
        return image
    return ImageCms.applyTransform(image, _transform(profile, image.mode))
