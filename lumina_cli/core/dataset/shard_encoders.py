"""Encodes the samples of one shard, as latents of one size or as features of their captions."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO

import numpy as np
from torch import Tensor

from lumina_cli.core.dataset.latent_cache import CHUNK, encode_images
from lumina_cli.core.device import cpu_count
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.overlays.joiner import OverlayJoiner
from lumina_cli.core.shards.overlays.writer import Part, Version
from lumina_cli.core.shards.reader import read_entry
from lumina_cli.core.sources.bad_images import open_entry

LATENTS, TEXT = "latents.npy", "text.npy"
TEXTS = 32  # captions encoded together


def digest_of(text: str) -> str:
    """Return 16 hex digits that identify a caption."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def is_rejected(line: dict) -> bool:
    """Return whether a line of an index of latents has none because its image is unreadable."""
    return not line["members"]


class Latents:
    """Encodes images as latents of one size."""

    def __init__(self, version: Version, encode: Callable[[Tensor], Tensor], size: int):
        self.version, self.encode, self.size = version, encode, size

    def is_current(self, tar: str, entries: list[dict], wanted: set[str]) -> bool:
        """Return whether the overlay of a tar is complete for the current images of `wanted` keys."""
        return self.version.has(tar, entries) and wanted <= self.version.lines(tar, entries).keys()

    def parts(self, tar: str, entries: list[dict], wanted: set[str], count: dict) -> Iterator[Part]:
        """Yield each wanted or known sample with its latents, encoded unless known; update `count`."""
        known = self.version.lines(tar, entries)
        for start in range(0, len(entries), CHUNK):
            group = entries[start : start + CHUNK]
            todo = [entry for entry in group if entry["key"] in wanted and entry["key"] not in known]
            with ThreadPoolExecutor(cpu_count()) as pool:  # decoding releases the GIL
                found = pool.map(partial(open_entry, tar), todo)
                opened = {entry["key"]: each for entry, each in zip(todo, found, strict=True)}
            images = {key: image for key, image in opened.items() if not isinstance(image, str)}
            latents = encode_images(list(images.values()), self.size, self.encode)
            encoded = dict(zip(images, latents, strict=True))
            for entry in group:
                key = entry["key"]
                if key in known:
                    count["reused"] += not is_rejected(known[key])
                    line, members = known[key], known[key]["members"]
                    more = {"unreadable": line["unreadable"]} if "unreadable" in line else {}
                    yield entry, {name: self.version.read(tar, line, name) for name in members}, more
                elif key in encoded:
                    count["encoded"] += 1
                    yield entry, {LATENTS: encode_npy(encoded[key].numpy())}, {}
                elif key in wanted:
                    yield entry, {}, {"unreadable": opened[key]}


class Features:
    """Encodes captions as features of a text encoder."""

    def __init__(self, version: Version, encode: Callable, system: str, joiner: OverlayJoiner):
        self.version, self.encode, self.system, self.joiner = version, encode, system, joiner

    def is_current(self, tar: str, entries: list[dict], wanted: set[str]) -> bool:
        """Return whether the overlay of a tar is complete for the current captions of `wanted` keys."""
        if not self.version.has(tar, entries):
            return False
        known = self.version.lines(tar, entries)
        texts = self._texts(tar, entries, wanted)
        return texts.keys() <= known.keys() and all(
            [tuple(each[:3]) for each in known[key]["captions"]] == [each[:3] for each in texts[key]]
            for key in texts
        )

    def parts(self, tar: str, entries: list[dict], wanted: set[str], count: dict) -> Iterator[Part]:
        """Yield each wanted or known sample with the features of its captions; update `count`."""
        known = self.version.lines(tar, entries)
        texts = self._texts(tar, entries, wanted | known.keys())
        old = {key: self._old(tar, known[key]) for key in known if key in texts}
        todo = [
            (key, digest, text)
            for key, each in texts.items()
            for _, _, digest, text in each
            if digest not in old.get(key, {})
        ]
        todo.sort(key=lambda item: len(item[2]))  # texts of similar length form a batch, with little padding
        for start in range(0, len(todo), TEXTS):
            group = todo[start : start + TEXTS]
            features, mask = self.encode([full_prompt(text, self.system) for _, _, text in group])
            for (key, digest, _), one, real in zip(group, features.cpu(), mask.cpu(), strict=True):
                old.setdefault(key, {})[digest] = one[real].numpy().astype(np.float16)
        count["encoded"] = len(todo)
        count["reused"] = sum(map(len, texts.values())) - len(todo)
        for entry in entries:
            if each := texts.get(entry["key"]):
                arrays = [old[entry["key"]][digest] for _, _, digest, _ in each]
                captions = [[*kind, len(array)] for (*kind, _), array in zip(each, arrays, strict=True)]
                known = {"captions": captions, "width": arrays[0].shape[1]}
                yield entry, {TEXT: encode_npy(np.concatenate(arrays))}, known

    def _texts(
        self, tar: str, entries: list[dict], wanted: set[str]
    ) -> dict[str, list[tuple[str, str, str, str]]]:
        """Return key -> (language, level, hash, text) of each caption, with overlays applied."""
        add, found = self.joiner.open(tar, entries), {}
        for entry in (entry for entry in entries if entry["key"] in wanted):
            captions = get_captions(add(entry, read_entry(tar, entry)), f"{tar}#{entry['key']}.json")
            kinds = [
                (lang, level, text) for lang, levels in captions.items() for level, text in levels.items()
            ]
            if kinds:
                found[entry["key"]] = [(lang, level, digest_of(text), text) for lang, level, text in kinds]
        return found

    def _old(self, tar: str, line: dict) -> dict[str, np.ndarray]:
        """Return caption hash -> features (M, T) of a sample that was encoded before."""
        return split_features(decode_npy(self.version.read(tar, line, TEXT)), line)


def split_features(values: np.ndarray, line: dict) -> dict[str, np.ndarray]:
    """Split `values` (sum of M, T) of a sample into caption hash -> features (M, T).

    `line` is the line of the index of the sample.
    """
    ends = np.cumsum([tokens for *_, tokens in line["captions"]])[:-1]
    return {kind[2]: array for kind, array in zip(line["captions"], np.split(values, ends), strict=True)}


def encode_npy(values: np.ndarray) -> bytes:
    """Return an array as the bytes of a float16 .npy file."""
    file = BytesIO()
    np.save(file, values.astype(np.float16), allow_pickle=False)
    return file.getvalue()


def decode_npy(data: bytes) -> np.ndarray:
    """Return the array in the bytes of a .npy file.

    Raises:
        LuminaError: if the bytes are not a .npy file.
    """
    try:
        return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, TypeError, OverflowError, MemoryError) as error:
        raise LuminaError(
            f"an overlay contains an invalid array ({error}); recreate it with `lumina shard encode`"
        ) from error
