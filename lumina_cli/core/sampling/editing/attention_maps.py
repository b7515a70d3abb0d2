"""Attention maps: the attention that each image token pays to the tokens of a word, as a heat map.

T tokens of all batch entries, N image tokens and L tokens of one entry, h heads, g key-value heads, d head
width.

Hooks on the qkv layers of the middle third of the main layers record queries and keys in each call of the
network. A map is the mean over heads, these layers and all calls.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lumina_cli.core.encoders.tokenizer import PromptTokenizer
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import open_image, save_image
from lumina_cli.core.sampling.hooks import Batch, BatchHook, Components
from lumina_cli.core.sampling.output.filenames import slug
from lumina_cli.core.sampling.request import Job

# colors from low to high attention
RAMP = ((0.0, (18, 16, 48)), (0.35, (104, 32, 116)), (0.7, (226, 92, 66)), (1.0, (253, 232, 150)))
GREY, HEAT = 0.85, 0.65  # opacity of the grey image, and of the heat map at its maximum


def word_tokens(tokens: PromptTokenizer, text: str, word: str, start: int = 0) -> list[int]:
    """Return the indices of a word's tokens in `text`, for each occurrence from character `start` on.

    Matching ignores case. In scripts with spaces, a word must not be part of a longer one.

    Raises:
        UsageError: if the word is empty, does not occur, or occurs only in the truncated end.
    """
    if not word.strip():
        raise UsageError("the word of --attention is empty")
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
        raise UsageError(f"{word!r} is beyond the encoder's limit of {tokens.max_tokens} tokens")
    return read


class AttentionRecorder:
    """A network that records the attention to some words in each of its calls.

    network   a NextDiT
    words     for each batch entry with a caption, the token indices of each word; later entries, the
              unconditional branch, are not recorded
    maps      (N,) for each entry and word, the sum over `recorded` layers and calls
    """

    def __init__(self, network: nn.Module, words: Sequence[Sequence[Sequence[int]]]):
        self.network, self.words = network, words
        self.encode_text = network.encode_text
        self.maps: list[list[Tensor | float]] = [[0.0] * len(entry) for entry in words]
        self.recorded = 0
        third = len(network.layers) // 3
        self.layers = list(network.layers)[third : max(third + 1, len(network.layers) - third)]

    def __call__(self, *inputs) -> Tensor:
        """Call the network."""
        return self.network.velocity_packed(*inputs, run_layers=self._run)

    def mean(self, entry: int) -> list[Tensor]:
        """Return for each word of an entry the fraction of attention of each image token, (N,)."""
        return [total / self.recorded for total in self.maps[entry]]

    def _run(self, stack) -> list[Tensor]:
        """Run the main layers with hooks on their qkv layers."""
        hooks = [
            layer.attention.qkv.register_forward_hook(
                partial(self._record, layer.attention, stack.layout, [])
            )
            for layer in self.layers
        ]
        try:
            return stack.run(range(stack.entries))
        finally:
            for hook in hooks:
                hook.remove()

    def _record(
        self, attention: nn.Module, layout, chunks: list[Tensor], layer, inputs, output: Tensor
    ) -> None:
        """Add the attention of one layer to the maps.

        A layer may compute its T tokens in several chunks. Each chunk calls this hook, so `chunks` collects
        the outputs until all tokens are complete.
        """
        chunks.append(output.detach())
        if sum(map(len, chunks)) < layout.ends[-1]:
            return
        q, k, _ = torch.cat(chunks).split(attention.widths, dim=-1)
        chunks.clear()
        self.recorded += 1
        for entry, words in enumerate(self.words):
            tokens, image = layout.entries[entry], layout.images[entry]
            queries = rotated(q[image], attention.q_norm, layout.rotations[image])
            keys = rotated(k[tokens], attention.k_norm, layout.rotations[tokens])
            for number, fraction in enumerate(word_attention(queries, keys, words)):
                self.maps[entry][number] = self.maps[entry][number] + fraction


def rotated(x: Tensor, norm: nn.Module, rotations: Tensor) -> Tensor:
    """Return x (T, h d), normalized and rotated (RoPE), as (h, T, d) in float32."""
    x = norm(x.unflatten(-1, (-1, len(norm.weight)))).float()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * rotations
    return torch.view_as_real(pairs).flatten(-2).transpose(0, 1)


def word_attention(queries: Tensor, keys: Tensor, words: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the mean over heads of the attention to each word.

    queries   (h, N, d)   of the image tokens
    keys      (g, L, d)   of all tokens
    words     indices of the tokens of each word
    returns   (N,) for each word, 0 to 1
    """
    fractions = [torch.zeros(queries.shape[1], device=queries.device) for _ in words]
    group = len(queries) // len(keys)
    for head, query in enumerate(queries):  # one at a time: at 1024x1024 the weights of a head take 70 MB
        weights = (query @ keys[head // group].T * query.shape[-1] ** -0.5).softmax(-1)
        for fraction, places in zip(fractions, words, strict=True):
            fraction += weights[:, list(places)].sum(-1) / len(queries)
    return fractions


class AttentionHook(BatchHook):
    """Records attention maps of some words for each image of a pipeline.

    maps   (job, size) -> for each time that it was generated, word -> map (rows, columns); `with_overlays`
           removes the maps that it saves
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(dict.fromkeys(words))
        self.maps: dict[tuple[Job, tuple[int, int]], list[dict[str, Tensor]]] = {}

    def prepare(self, pipeline: Components, batch: Batch) -> Batch:
        """Replace the network by one that records.

        Raises:
            UsageError: if a word is not in a prompt, or the plan has a cache, which skips layers.
        """
        if batch.resolved.plan.cache is not None:
            raise UsageError("--attention cannot be used with a cache, which skips layers; pass --cache off")
        words = []
        for job in batch.jobs:
            text = batch.resolved.prompt(job)
            start = len(text) - len(job.prompt)  # words of the system prompt do not count
            words.append([word_tokens(pipeline.text.tokens, text, word, start) for word in self.words])
        return replace(batch, network=AttentionRecorder(batch.network, words))

    def finish(self, pipeline: Components, batch: Batch, images: list[Image.Image]) -> list[Image.Image]:
        """Keep the maps of the batch.

        Raises:
            UsageError: if the network was never called.
        """
        recorder = batch.network
        if not recorder.recorded:
            raise UsageError("--attention needs --strength above 0: at 0 the network is never called")
        width, height = batch.size
        grid = height // pipeline.token_side, width // pipeline.token_side
        for entry, job in enumerate(batch.jobs):
            maps = [fraction.reshape(grid).cpu() for fraction in recorder.mean(entry)]
            self.maps.setdefault((job, batch.size), []).append(dict(zip(self.words, maps, strict=True)))
        return images


def with_overlays(rows: Iterable[dict], hook: AttentionHook) -> Iterator[dict]:
    """Yield rows of `generate_rows` with "attention" added: word -> path of a PNG, the image under its map.

    The rows must come from a pipeline with this hook, with `force` so that every image was generated.

    Raises:
        LuminaError: if writing fails.
    """
    for row in rows:
        size = tuple(int(side) for side in row["size"].split("x"))
        job = Job(row["prompt"], row["seed"], row["number"], row.get("negative") or "")
        waiting, paths = hook.maps[job, size], {}
        maps = waiting.pop(0)
        if not waiting:
            del hook.maps[job, size]
        path = Path(row["image"])
        for word, fraction in maps.items():
            target = path.with_name(f"{path.stem}-attention-{slug(word) or len(paths)}.png")
            metadata = {"attention": word, "of": path.name, "highest": float(fraction.max())}
            try:
                save_image(overlay(open_image(path), fraction), target, metadata)
            except OSError as error:
                raise LuminaError(f"cannot write {target}: {error.strerror or error}") from error
            paths[word] = str(target)
        yield row | {"attention": paths}


def overlay(image: Image.Image, fraction: Tensor) -> Image.Image:
    """Return an image in grey under a heat map of `fraction` (rows, columns), from its minimum to maximum."""
    low, high = float(fraction.min()), float(fraction.max())
    heat = ((fraction.float() - low) / max(high - low, 1e-12)).numpy()
    heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops, colours = [stop for stop, _ in RAMP], np.array([colour for _, colour in RAMP], np.float32)
    ramp = np.stack([np.interp(heat, stops, colours[:, channel]) for channel in range(3)], axis=-1)
    colour = np.asarray(image, np.float32)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    ground = GREY * grey + (1 - GREY) * colour
    cover = HEAT * np.sqrt(heat)[..., None]
    return Image.fromarray((cover * ramp + (1 - cover) * ground).round().clip(0, 255).astype(np.uint8))
