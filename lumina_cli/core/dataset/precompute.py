"""Precomputes latents and text features of shards as overlays, which training uses instead of encoding.

    overlay latents-SIZE   {key}.latents.npy   float16 (C, H, W), of the image cropped for SIZE (buckets.py)
    overlay text-SYSTEM    {key}.text.npy      float16 (M, T), the features of all captions concatenated; the
                                               index lists [language, level, hash, tokens] of each caption

They are identified by content: the sha256 of the image and of each caption, and a digest of the encoder.
Changed samples are encoded again, all others are reused; another encoder writes another version.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from torch import Tensor

from lumina_cli.core.dataset.latent_cache import CHUNK, encode_images
from lumina_cli.core.device import cpu_count, pick_device
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.shards.overlays.reader import OverlayJoiner, find_overlays
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.overlays.writer import Part, Version
from lumina_cli.core.shards.reader import open_shards, read_entry, read_index
from lumina_cli.core.shards.selection import resolve_shards, selected_keys
from lumina_cli.core.sources.bad_images import UnreadableImages, open_entry
from lumina_cli.core.weights.fingerprint import fingerprint_weights

WHAT = ("latents", "text")
LATENTS, TEXT = "latents.npy", "text.npy"
RECIPE = 1  # version of cropping and prompt formatting; increase it to invalidate all overlays
TEXTS = 32  # captions encoded together


def encode_shards(
    shards: str,
    model: Path,
    what: Sequence[str],
    sizes: Sequence[int],
    system: str = "real",
    max_bad_rate: float = 1.0,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Encode shards with the encoders of a model folder; yield a row per overlay and shard.

    shards        folder of shards, or a selection, whose selected samples alone are encoded
    model         model folder with vae, text_encoder and tokenizer
    what          "latents", "text" or both
    sizes         image sizes in pixels (buckets.py)
    system        name of the system prompt before each caption
    max_bad_rate  fraction of the images that may be unreadable
    notify        receives messages about unreadable images

    A row contains overlay, shard, samples, encoded, reused and unreadable. An unreadable image has no
    latents; its line of the overlay's index contains the reason under "unreadable".

    Raises:
        UsageError: if `what` contains an unknown word.
        TooManyRejects: at the end, if more than `max_bad_rate` of the images are unreadable.
    """
    for word in what:
        if word not in WHAT:
            raise UsageError(
                f"unknown --what {word!r}{did_you_mean(word, WHAT) or '; choose from latents, text'}"
            )
    chosen, shards = selected_keys(shards), resolve_shards(shards)
    tars, seen, place = open_shards(shards), UnreadableImages(max_bad_rate, notify), ""
    if "latents" in what:
        from lumina_cli.core.encoders.vae import Autoencoder

        vae = Autoencoder(model, pick_device())
        for size in dict.fromkeys(sizes):
            settings = {"encoder": vae_digest(model), "size": size}
            version = begin_version(shards, f"latents-{size}", settings)
            kind = _Latents(version, vae.encode, size)
            # The same images are unreadable at each size: count them once.
            yield from _encode(version, tars, chosen, kind, None if place else seen)
            place = place or version.folder
    if "text" in what:
        from lumina_cli.core.encoders.text import TextEncoder

        settings = {"encoder": text_digest(model), "prompt": full_prompt("", system)}
        encoder = TextEncoder(model, pick_device())
        version = begin_version(shards, text_overlay(system), settings)
        joiner = OverlayJoiner(find_overlays(shards))
        yield from _encode(version, tars, chosen, _Features(version, encoder.encode, system, joiner), None)
    seen.end(place)


def text_overlay(system: str) -> str:
    """Return the name of the overlay with the features of captions after a system prompt."""
    return f"text-{system if ' ' not in system else digest_of(system)[:8]}"


def digest_of(text: str) -> str:
    """Return 16 hex digits that identify a caption."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def vae_digest(model: Path) -> str:
    """Return 16 hex digits that identify the autoencoder of a model folder."""
    return _digest(model / "vae")


def text_digest(model: Path) -> str:
    """Return 16 hex digits that identify the text encoder and the tokenizer of a model folder."""
    return _digest(model / "text_encoder", *sorted((model / "tokenizer").glob("tokenizer*")))


def _digest(part: Path, *files: Path) -> str:
    digest = hashlib.sha256(f"{RECIPE} {fingerprint_weights(part)}".encode())
    for file in (part / "config.json", *files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _encode(
    version: Version,
    tars: list[str],
    chosen: dict[str, frozenset[str]] | None,
    kind: "_Latents | _Features",
    seen: UnreadableImages | None,
) -> Iterator[dict]:
    """Write one overlay shard by shard, reusing what was encoded from the same content.

    `chosen` are the keys of the selected samples by tar, None for all; `seen` counts unreadable images.
    """
    for tar in tars:
        entries = read_index(tar)
        keys = {entry["key"] for entry in entries}
        wanted = keys if chosen is None else keys & chosen.get(filesystem.basename(tar), frozenset())
        row = {"overlay": version.name, "shard": tar, "samples": len(entries)}
        count = {"encoded": 0, "reused": 0, "unreadable": 0}
        current = kind.is_current(tar, entries, wanted)
        if not current:
            version.write(tar, entries, kind.parts(tar, entries, wanted, count))
        known = version.lines(tar, entries)
        bad = {
            key: known[key].get("unreadable", "") for key in wanted & known.keys() if is_rejected(known[key])
        }
        count |= {"unreadable": len(bad)} | ({"reused": len(wanted) - len(bad)} if current else {})
        if seen:
            seen.add(tar, {key: bad[key] for key in sorted(bad)}, len(wanted))
        yield row | count
    version.finish(tars)


def is_rejected(line: dict) -> bool:
    """Return whether a line of an index of latents has none because its image is unreadable."""
    return not line["members"]


class _Latents:
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


class _Features:
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
        return np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise LuminaError(
            f"an overlay contains an invalid array ({error}); recreate it with `lumina shard encode`"
        ) from error
