"""Where a picture looks at a word: how much of their attention its tokens give the word's, as a heat map.

T tokens of all rows, N image tokens of a row, L tokens of a row, h heads, g key-value heads, d head width.

The queries and keys of the main layers in the middle are read off their linear layer while a picture is
drawn, in every call of the network; so a map is a mean over heads, those layers and all calls.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lumina_cli.core.encoders.tokenizer import PromptTokenizer
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import open_image, save_image
from lumina_cli.core.sampling.output.filenames import slug
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest

# from little to much attention: night, violet, ember, straw
RAMP = ((0.0, (18, 16, 48)), (0.35, (104, 32, 116)), (0.7, (226, 92, 66)), (1.0, (253, 232, 150)))
GREY, HEAT = 0.85, 0.65  # how far the picture is greyed, and the heat covers it, where it is hottest


def word_tokens(tokens: PromptTokenizer, text: str, word: str, start: int = 0) -> list[int]:
    """Return the places of a word's tokens among those of `text`, every time it comes from `start` on.

    Upper case counts as lower; a word of letters must stand alone, in scripts with spaces. UsageError where
    the word is not there, or only in the end that is not read.
    """
    if not word.strip():
        raise UsageError("the word whose attention is asked for is empty")
    quoted = re.escape(word.strip())
    spans = [match.span() for match in re.finditer(rf"(?<!\w){quoted}(?!\w)", text[start:], re.IGNORECASE)]
    if not spans and not word.isascii():  # Chinese and Japanese have no spaces
        spans = [match.span() for match in re.finditer(quoted, text[start:], re.IGNORECASE)]
    if not spans:
        raise UsageError(f"{word!r} is not in the prompt {text[start:][:60]!r}")
    offsets = tokens.tokenizer([text], return_offsets_mapping=True, verbose=False)["offset_mapping"][0]
    found = [
        place
        for place, (first, last) in enumerate(offsets)
        if any(first < start + end and last > start + begin for begin, end in spans)
    ]
    read = [place for place in found if place < tokens.max_tokens]
    if not read:
        raise UsageError(f"{word!r} is not read: it stands behind the {tokens.max_tokens} tokens that are")
    return read


class AttentionRecorder:
    """A network that is watched while it draws: `maps` (N,) for every row and word, summed over `calls`.

    network   a NextDiT
    rows      for each captioned row the tokens of each word; rows behind these have no caption
    """

    def __init__(self, network: nn.Module, rows: Sequence[Sequence[Sequence[int]]]):
        self.network, self.rows = network, rows
        self.encode_text = network.encode_text
        self.maps: list[list[Tensor | float]] = [[0.0] * len(words) for words in rows]
        self.looks = 0
        middle = len(network.layers) // 3
        self.layers = list(network.layers)[middle : max(middle + 1, len(network.layers) - middle)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *inputs) -> Tensor:
        return self.network.velocity_packed(*inputs, run_layers=self._watch)

    def mean(self, row: int) -> list[Tensor]:
        """Return the share of its attention that each image token gives to each word of a row, (N,) each."""
        return [total / self.looks for total in self.maps[row]]

    def _watch(self, stage) -> list[Tensor]:
        hooks = [
            layer.attention.qkv.register_forward_hook(partial(self._read, layer.attention, stage.layout, []))
            for layer in self.layers
        ]
        try:
            return stage.run(range(stage.rows))
        finally:
            for hook in hooks:
                hook.remove()

    def _read(self, attention: nn.Module, pack, parts: list[Tensor], layer, inputs, output: Tensor) -> None:
        """Gather what the linear layer of one attention returns for all T tokens, in parts or at once."""
        parts.append(output.detach())
        if sum(map(len, parts)) < pack.ends[-1]:
            return
        q, k, _ = torch.cat(parts).split(attention.widths, dim=-1)
        parts.clear()
        self.looks += 1
        for row, words in enumerate(self.rows):
            tokens, image = pack.rows[row], pack.images[row]
            queries = turned(q[image], attention.q_norm, pack.rotations[image])
            keys = turned(k[tokens], attention.k_norm, pack.rotations[tokens])
            for number, shares in enumerate(word_shares(queries, keys, words)):
                self.maps[row][number] = self.maps[row][number] + shares


def turned(x: Tensor, norm: nn.Module, turns: Tensor) -> Tensor:
    """x (T, h d) normalised and rotated, as (h, T, d) in float32."""
    x = norm(x.unflatten(-1, (-1, len(norm.weight)))).float()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns
    return torch.view_as_real(pairs).flatten(-2).transpose(0, 1)


def word_shares(queries: Tensor, keys: Tensor, words: Sequence[Sequence[int]]) -> list[Tensor]:
    """queries (h, N, d) and keys (g, L, d) -> the share of each word (N,), as a mean over heads."""
    shares = [torch.zeros(queries.shape[1], device=queries.device) for _ in words]
    group = len(queries) // len(keys)
    for head, query in enumerate(queries):  # one at a time: at 1024x1024 a head's weights take 70 MB
        weights = (query @ keys[head // group].T * query.shape[-1] ** -0.5).softmax(-1)
        for share, places in zip(shares, words, strict=True):
            share += weights[:, list(places)].sum(-1) / len(queries)
    return shares


class AttentionPipeline(Pipeline):
    """A pipeline that keeps, for each picture that it draws, where it looks at each of some words.

    maps   (job, size) -> for each time that it was drawn, word -> (rows, columns) of shares of attention;
           `with_overlays` takes them out
    """

    def __init__(self, pipeline: Pipeline, words: Sequence[str]):
        self.__dict__.update(pipeline.__dict__)
        self.inner, self.words = pipeline, list(dict.fromkeys(words))
        self.maps: dict[tuple[Job, tuple[int, int]], list[dict[str, Tensor]]] = {}

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the pipeline inside draws at if nobody says otherwise."""
        return self.inner.default_size

    def draw_setup(
        self,
        jobs: Sequence[Job],
        setup: ResolvedRequest,
        size: tuple[int, int] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Image.Image]:
        """Draw one batch and keep its maps; see `Pipeline.draw_setup`.

        UsageError where a word is not in a prompt, a cache would leave calls out, or none is made.
        """
        if setup.plan.cache is not None:
            raise UsageError("attention is read in every call of the network; draw without a cache")
        size = size or self.default_size
        rows = []
        for job in jobs:
            text = setup.prompt(job)
            start = len(text) - len(job.prompt)
            rows.append([word_tokens(self.text.tokens, text, word, start) for word in self.words])
        watching = AttentionRecorder(self.inner.transformer, rows)
        watched = copy(self.inner)
        watched.transformer = watching
        pictures = watched.draw_setup(jobs, setup, size, on_step)
        if not watching.looks:
            raise UsageError("at strength 0 the network is not called, and so looks at no word")
        grid = size[1] // self.token_side, size[0] // self.token_side
        for row, job in enumerate(jobs):
            found = [share.reshape(grid).cpu() for share in watching.mean(row)]
            self.maps.setdefault((job, size), []).append(dict(zip(self.words, found, strict=True)))
        return pictures


def with_overlays(rows: Iterable[dict], pipeline: AttentionPipeline) -> Iterator[dict]:
    """Yield the rows of `draw_rows` with "attention": word -> a PNG beside the picture, hot where it looks.

    For rows that the pipeline has just drawn (`draw_rows` with `force`).
    """
    for row in rows:
        size = tuple(int(side) for side in row["size"].split("x"))
        job = Job(row["prompt"], row["seed"], row["number"], row.get("negative") or "")
        waiting, paths = pipeline.maps[job, size], {}
        maps = waiting.pop(0)
        if not waiting:
            del pipeline.maps[job, size]
        path = Path(row["image"])
        for word, share in maps.items():
            target = path.with_name(f"{path.stem}-attention-{slug(word) or len(paths)}.png")
            told = {"attention": word, "of": path.name, "highest": float(share.max())}
            try:
                save_image(overlay(open_image(path), share), target, told)
            except OSError as error:
                raise LuminaError(f"cannot write {target}: {error.strerror or error}") from error
            paths[word] = str(target)
        yield row | {"attention": paths}


def overlay(picture: Image.Image, share: Tensor) -> Image.Image:
    """Return a picture, greyed, under the heat of shares (rows, columns), from its least to its most."""
    low, high = float(share.min()), float(share.max())
    heat = ((share.float() - low) / max(high - low, 1e-12)).numpy()
    heat = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops, colours = [stop for stop, _ in RAMP], np.array([colour for _, colour in RAMP], np.float32)
    ramp = np.stack([np.interp(heat, stops, colours[:, channel]) for channel in range(3)], axis=-1)
    colour = np.asarray(picture, np.float32)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    ground = GREY * grey + (1 - GREY) * colour
    cover = HEAT * np.sqrt(heat)[..., None]
    return Image.fromarray((cover * ramp + (1 - cover) * ground).round().clip(0, 255).astype(np.uint8))
