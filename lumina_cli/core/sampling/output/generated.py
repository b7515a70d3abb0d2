"""Images in memory that carry their generation record: `save` stores it as `lumina sample` does."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lumina_cli.core.images.metadata.stored import metadata_settings
from lumina_cli.core.sampling.output.metadata import GenerationRecord, to_metadata

_STORED = {"PNG": "pnginfo", "JPEG": "exif", "WEBP": "exif", "AVIF": "exif", "TIFF": "exif"}


class GeneratedImage(Image.Image):
    """A PIL image with `metadata`, which `save` stores in PNG, JPEG, WebP, AVIF and TIFF files.

    Copies and edited versions are ordinary images without metadata.
    """

    metadata: dict

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Save the image as PIL does; own `pnginfo` or `exif` settings replace the metadata."""
        suffix = Path(fp).suffix.lower() if isinstance(fp, str | Path) else ""
        kind = (format or Image.registered_extensions().get(suffix, "")).upper()
        kind = "JPEG" if kind == "JPG" else kind
        metadata = getattr(self, "metadata", None)  # an unpickled image has none
        if metadata and kind in _STORED and _STORED[kind] not in params:
            params |= metadata_settings(metadata, kind, Path(fp) if suffix else Path("image"))
        super().save(fp, format, **params)


def attach_record(image: Image.Image, record: GenerationRecord) -> GeneratedImage:
    """Return the image with the metadata of its record."""
    generated = GeneratedImage()
    generated.__dict__.update(image.__dict__)
    generated.metadata = to_metadata(record)
    return generated


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Return 8-bit RGB images of pixels (B, 3, H, W) in [-1, 1]."""
    levels = ((pixels.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return [Image.fromarray(image.numpy()) for image in levels.permute(0, 2, 3, 1).cpu()]
