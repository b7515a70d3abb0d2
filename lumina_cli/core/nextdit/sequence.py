"""The joint sequence of text and image tokens: patches, positions and key masks.

B batch entries, M text tokens, N image tokens, C channels, H W latent size, p patch side, D width, T text
width, d head width.

Every entry is laid out as [text, padded to M][image, padded to N]. Positions are explicit and padded keys are
masked, so the result is that of the paper's layout, which has no gap between text and image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle

import torch
from torch import Tensor
from torch.nn.functional import pad

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.rope import Rotation, axis_tables, rotation_at


class InvalidInput(LuminaError, ValueError):
    """An input of a shape that the network does not accept; a ValueError for Python callers."""


@dataclass(frozen=True)
class EncodedText:
    """Captions after the context refiner: independent of time, so computed once per prompt.

    features   (B, M, D)    real tokens first
    lengths    B integers   number of real tokens
    """

    features: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Rotations and key masks of a padded batch.

    text, image, joint        rotations of the text, the image and the joint tokens
    image_mask, joint_mask    (B, tokens), True for real tokens; None if all are real
    """

    text: Rotation
    image: Rotation
    joint: Rotation
    image_mask: Tensor | None
    joint_mask: Tensor | None


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, p*p*C): patches in row-major order, channels last inside a patch."""
    x = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, H/p, p, W/p, p)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """(B, N, p*p*C) -> (B, C, H, W) for `size` = (H, W): the inverse of `patchify`."""
    rows, columns = size[0] // patch, size[1] // patch
    x = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))  # (B, H/p, W/p, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patchify_all(latents: Sequence[Tensor], patch: int) -> Tensor:
    """Latents (C, H, W) of mixed sizes -> (B, N, p*p*C), padded with zeros to the largest."""
    tokens = [patchify(image[None], patch)[0] for image in latents]
    longest = max(map(len, tokens))
    return torch.stack([pad(own, (0, 0, 0, longest - len(own))) for own in tokens])


def unpatchify_like(
    tokens: Tensor | Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    patch: int,
    latents: Tensor | Sequence[Tensor],
) -> Tensor | list[Tensor]:
    """Convert image tokens to latents in the form and dtype of `latents`.

    tokens    (B, N, p*p*C) with padding, or (N, p*p*C) for each entry
    sizes     (H, W) of each entry
    latents   a tensor (B, C, H, W), or a list of (C, H, W)
    """
    if isinstance(latents, Tensor):
        tokens = tokens if isinstance(tokens, Tensor) else torch.stack(tokens)
        return unpatchify(tokens, sizes[0], patch).to(latents.dtype)
    counts = [height * width // patch**2 for height, width in sizes]
    return [
        unpatchify(own[None, :count], size, patch)[0].to(image.dtype)
        for own, count, size, image in zip(tokens, counts, sizes, cycle(latents), strict=False)
    ]


def check_images(sizes: Sequence[tuple[int, ...]], config: NextDiTConfig) -> None:
    """Check the shapes (C, H, W) of latents.

    Raises:
        InvalidInput: if a side is not a multiple of the patch size or exceeds the position table.
    """
    patch = config.patch_size
    for size in sizes:
        if len(size) != 3 or size[0] != config.in_channels:
            raise InvalidInput(f"latents have shape {size}; each image must be ({config.in_channels}, H, W)")
        for name, side, limit in zip(("height", "width"), size[1:], config.axes_len[1:], strict=True):
            if side % patch or side == 0:
                raise InvalidInput(f"latent {name} {side} is not a multiple of the patch size {patch}")
            if side // patch > limit:
                raise InvalidInput(
                    f"latent {name} {side} is too large; the position table ends at {limit * patch}"
                )


def text_lengths(text: Tensor, mask: Tensor | None, config: NextDiTConfig) -> tuple[int, ...]:
    """Return the number of real tokens of each caption.

    text   (B, M, T)
    mask   (B, M), True for real tokens, which come first; None if all are real

    Raises:
        InvalidInput: if a shape does not fit, a mask has a gap, or a caption is empty or too long.
    """
    if text.ndim != 3 or text.shape[2] != config.text_dim:
        raise InvalidInput(f"text has shape {tuple(text.shape)}; it must be (B, M, {config.text_dim})")
    if mask is None:
        lengths = (text.shape[1],) * text.shape[0]
    else:
        if mask.shape != text.shape[:2]:
            raise InvalidInput(f"text_mask has shape {tuple(mask.shape)}; it must be {tuple(text.shape[:2])}")
        rows = mask.bool().tolist()
        lengths = tuple(sum(row) for row in rows)
        if any(not all(row[:length]) for row, length in zip(rows, lengths, strict=True)):
            raise InvalidInput("text_mask has a gap; real tokens must come first, padding last")
    if min(lengths) < 1:
        raise InvalidInput("a caption has no token; even an empty prompt has its first token")
    if max(lengths) > config.max_text_tokens:
        raise InvalidInput(f"a caption has {max(lengths)} tokens; at most {config.max_text_tokens} fit")
    return lengths


def key_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Return the mask of real tokens, (B, longest), or None if all lengths are equal."""
    if min(lengths) == max(lengths):
        return None
    return real_tokens(lengths, device)


def real_tokens(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the mask of real tokens, (B, longest)."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


@lru_cache(maxsize=64)
def text_rotation(config: NextDiTConfig, length: int, device: torch.device) -> Rotation:
    """Return the rotation of text tokens, (1, length, d/2): token n has position (n, 0, 0)."""
    with torch.inference_mode(False), torch.no_grad():
        positions = torch.zeros(1, length, 3, dtype=torch.long)
        positions[..., 0] = torch.arange(length)
        return rotation_at(axis_tables(config.axes_dim, config.axes_len, device), positions.to(device))


def image_rotation(
    config: NextDiTConfig, lengths: Sequence[int], grids: Sequence[tuple[int, int]], device: torch.device
) -> Rotation:
    """Return the rotation of image tokens, (B, N, d/2): row r, column c is at (caption length, r, c)."""
    positions = torch.zeros(len(lengths), max(rows * columns for rows, columns in grids), 3, dtype=torch.long)
    positions[..., 0] = torch.tensor(lengths)[:, None]
    for position, (rows, columns) in zip(positions, grids, strict=True):
        position[: rows * columns, 1] = torch.arange(rows).repeat_interleave(columns)
        position[: rows * columns, 2] = torch.arange(columns).repeat(rows)
    return rotation_at(axis_tables(config.axes_dim, config.axes_len, device), positions.to(device))


# few entries, because the layout of large images is large; enough for both branches of guidance and two sizes
@lru_cache(maxsize=4)
def padded_layout(
    config: NextDiTConfig, lengths: tuple[int, ...], grids: tuple[tuple[int, int], ...], device: torch.device
) -> Layout:
    """Return rotations and masks of a padded batch.

    lengths   tokens of each caption
    grids     (rows, columns) of the patches of each image
    """
    if len(set(lengths)) == 1 and len(set(grids)) == 1:
        lengths, grids = lengths[:1], grids[:1]
    with torch.inference_mode(False), torch.no_grad():
        text = text_rotation(config, max(lengths), device)
        image = image_rotation(config, lengths, grids, device)
        joint = Rotation(*(_concatenate(a, b) for a, b in zip(text, image, strict=True)))
        image_lengths = [rows * columns for rows, columns in grids]
        image_mask = key_mask(image_lengths, device)
        joint_mask = None
        if len(lengths) > 1:
            masks = [real_tokens(lengths, device), real_tokens(image_lengths, device)]
            joint_mask = torch.cat(masks, dim=-1)
    return Layout(text, image, joint, image_mask, joint_mask)


def _concatenate(text: Tensor, image: Tensor) -> Tensor:
    """(1, M, d/2) and (B, N, d/2) -> (B, M + N, d/2)."""
    return torch.cat([text.expand(len(image), -1, -1), image], dim=1)
