"""The joint sequence: pictures to tokens and back, who sits where, and which keys are real.

B pictures, M text tokens, N image tokens, C channels, H W latent size, p patch side, D width.

Every sample is laid out as [text, padded to M][image, padded to N]. Positions are explicit and padded keys
are masked, so this computes the same as closing the gap between text and image, without moving a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.rope import Rotation, axis_tables, look_up


class InvalidInput(LuminaError, ValueError):
    """An input whose shape the model cannot take: a ValueError in Python, one line on the command line."""


@dataclass(frozen=True)
class EncodedText:
    """Captions after the part of the model that does not depend on time; reusable at every step.

    features  (B, M, D)   real tokens first
    lengths   B numbers   how many tokens are real
    """

    features: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Rotations and key masks (B, tokens) of the parts and of the whole; no mask: all are real."""

    text: Rotation
    image: Rotation
    joint: Rotation
    image_mask: Tensor | None
    joint_mask: Tensor | None


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, p*p*C): patches row by row, channels fastest inside a patch."""
    x = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """(B, N, p*p*C) -> (B, C, H, W), with `size` = (H, W); undoes `patchify`."""
    rows, columns = size[0] // patch, size[1] // patch
    x = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patchify_all(latents: Sequence[Tensor], patch: int) -> Tensor:
    """Pictures (C, H, W) of mixed sizes -> (B, N, p*p*C), zeros behind the smaller ones."""
    tokens = [patchify(picture[None], patch)[0] for picture in latents]
    longest = max(len(rows) for rows in tokens)
    return torch.stack([pad(rows, (0, 0, 0, longest - len(rows))) for rows in tokens])


def check_images(sizes: Sequence[tuple[int, ...]], config: NextDiTConfig) -> None:
    """Raise UnfitInput where a picture (C, H, W) cannot be cut into patches or leaves the position table."""
    patch = config.patch_size
    for size in sizes:
        if len(size) != 3 or size[0] != config.in_channels:
            raise InvalidInput(
                f"latents have shape {size}; each picture must be ({config.in_channels}, H, W)"
            )
        for name, side, limit in zip(("height", "width"), size[1:], config.axes_len[1:], strict=True):
            if side % patch or side == 0:
                raise InvalidInput(f"latent {name} {side} is not a multiple of the patch size {patch}")
            if side // patch > limit:
                raise InvalidInput(
                    f"latent {name} {side} is too large; the position table ends at {limit * patch}"
                )


def text_lengths(text: Tensor, mask: Tensor | None, config: NextDiTConfig) -> tuple[int, ...]:
    """How many tokens of each caption in `text` (B, M, T) are real; UnfitInput where they do not fit."""
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
    """(B, longest), True where a token is real; None where all lengths are equal."""
    if min(lengths) == max(lengths):
        return None
    return real_tokens(lengths, device)


def real_tokens(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(B, longest), True where a token is real."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


@lru_cache(maxsize=64)
def text_rotation(config: NextDiTConfig, length: int, device: torch.device) -> Rotation:
    """Text token n stands at (n, 0, 0)."""
    with torch.inference_mode(False), torch.no_grad():
        places = torch.zeros(1, length, 3, dtype=torch.long)
        places[..., 0] = torch.arange(length)
        return look_up(axis_tables(config.axes_dim, config.axes_len, device), places.to(device))


def image_rotation(
    config: NextDiTConfig, lengths: Sequence[int], grids: Sequence[tuple[int, int]], device: torch.device
) -> Rotation:
    """The patch of row r and column c stands at (caption length, r, c)."""
    places = torch.zeros(len(lengths), max(rows * columns for rows, columns in grids), 3, dtype=torch.long)
    places[..., 0] = torch.tensor(lengths)[:, None]
    for place, (rows, columns) in zip(places, grids, strict=True):
        place[: rows * columns, 1] = torch.arange(rows).repeat_interleave(columns)
        place[: rows * columns, 2] = torch.arange(columns).repeat(rows)
    return look_up(axis_tables(config.axes_dim, config.axes_len, device), places.to(device))


# few entries, because a layout of large pictures is large; enough for both halves of guidance and two sizes
@lru_cache(maxsize=4)
def padded_layout(
    config: NextDiTConfig, lengths: tuple[int, ...], grids: tuple[tuple[int, int], ...], device: torch.device
) -> Layout:
    """Rotations and masks for captions of `lengths` tokens and pictures of `grids` (rows, columns)."""
    if len(set(lengths)) == 1 and len(set(grids)) == 1:
        lengths, grids = lengths[:1], grids[:1]
    with torch.inference_mode(False), torch.no_grad():
        text = text_rotation(config, max(lengths), device)
        image = image_rotation(config, lengths, grids, device)
        joint = Rotation(*(join(a, b) for a, b in zip(text, image, strict=True)))
        image_lengths = [rows * columns for rows, columns in grids]
        image_mask = key_mask(image_lengths, device)
        joint_mask = None
        if len(lengths) > 1:
            parts = [real_tokens(lengths, device), real_tokens(image_lengths, device)]
            joint_mask = torch.cat(parts, dim=-1)
    return Layout(text, image, joint, image_mask, joint_mask)


def join(text: Tensor, image: Tensor) -> Tensor:
    """(1, M, d/2) and (B, N, d/2) -> (B, M + N, d/2)."""
    return torch.cat([text.expand(len(image), -1, -1), image], dim=1)
