"""Precomputes latents and text features of shards as overlays, which training uses instead of encoding.

    overlay latents-SIZE   {key}.latents.npy   float16 (C, H, W), of the image cropped for SIZE (buckets.py)
    overlay text-SYSTEM    {key}.text.npy      float16 (M, T), the features of all captions concatenated; the
                                               index lists [language, level, hash, tokens] of each caption

They are identified by content: the sha256 of the image and of each caption, and a digest of the encoder.
Changed samples are encoded again, all others are reused; another encoder writes another version.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from socket import gethostname

from lumina_cli.core.dataset.shard_encoders import Features, Latents, digest_of, is_rejected
from lumina_cli.core.device import pick_device
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.parallel.workers import Workers, parse_workers, run_items
from lumina_cli.core.models.locate import find_model
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.shards.overlays.joiner import OverlayJoiner
from lumina_cli.core.shards.overlays.reader import find_overlays
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.overlays.writer import Version
from lumina_cli.core.shards.reader import open_shards
from lumina_cli.core.shards.selection import resolve_shards, selected_keys
from lumina_cli.core.shards.tar import read_index
from lumina_cli.core.sources.bad_images import UnreadableImages
from lumina_cli.core.weights.fingerprint import fingerprint_weights
from lumina_cli.core.weights.json_files import stored_config

WHAT = ("latents", "text")
RECIPE = 1  # version of cropping and prompt formatting; increase it to invalidate all overlays


def encode_shards(
    shards: str,
    model: str | Path,
    what: Sequence[str],
    sizes: Sequence[int],
    system: str = "real",
    max_bad_rate: float = 1.0,
    workers: int | str | Workers = 1,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Encode shards with the encoders of a model folder; yield a row per overlay and shard.

    shards        folder of shards, or a selection, whose selected samples alone are encoded
    model         name, folder or hub id of a model with vae, text_encoder and tokenizer
    what          "latents", "text" or both
    sizes         image sizes in pixels (buckets.py)
    system        name of the system prompt before each caption
    max_bad_rate  fraction of the images that may be unreadable
    workers       processes, or "ray" or "ray:N": Ray workers; each loads the encoders
    notify        receives messages about unreadable images

    A row contains overlay, shard, samples, encoded, reused and unreadable. An unreadable image has no
    latents; its line of the overlay's index contains the reason under "unreadable".

    Raises:
        UsageError: if `what` contains an unknown word, or workers cannot write to the folder.
        TooManyRejects: at the end, if more than `max_bad_rate` of the images are unreadable.
    """
    workers = parse_workers(workers, 1)
    for word in what:
        if word not in WHAT:
            raise UsageError(
                f"unknown --what {word!r}{did_you_mean(word, WHAT) or '; choose from latents, text'}"
            )
    chosen, shards = selected_keys(shards), resolve_shards(shards)
    workers = workers.for_output(shards)
    tars, seen = open_shards(shards), UnreadableImages(max_bad_rate, notify)
    folder = find_model(model)
    begun = _begin_versions(shards, str(model), folder, what, sizes, system)
    # The same images are unreadable at each size: count them once.
    first = begun[0][0] if begun and begun[0][1].size is not None else None
    for version, row, bad, number in _encode(begun, tars, chosen, workers, notify):
        if version is first:
            seen.add(row["shard"], bad, number)
        yield row
    seen.end(first.folder if first else "")


def _begin_versions(
    shards: str, model: str, folder: Path, what: Sequence[str], sizes: Sequence[int], system: str
) -> "list[tuple[Version, EncoderSettings]]":
    """Return the version of each overlay to write, and what encodes it: latents of each size, then text."""
    found = []
    for size in dict.fromkeys(sizes) if "latents" in what else ():
        settings = {"encoder": vae_digest(folder), "size": size}
        version = begin_version(shards, f"latents-{size}", settings)
        found.append((version, EncoderSettings(model, size=size)))
    if "text" in what:
        settings = {"encoder": text_digest(folder), "prompt": full_prompt("", system)}
        version = begin_version(shards, text_overlay(system), settings)
        found.append((version, EncoderSettings(model, system=system)))
    return found


def text_overlay(system: str) -> str:
    """Return the name of the overlay with the features of captions after a system prompt."""
    return f"text-{system if ' ' not in system else digest_of(system)[:8]}"


def vae_digest(model: Path) -> str:
    """Return 16 hex digits that identify the autoencoder of a model folder."""
    return _digest(model / "vae")


def text_digest(model: Path) -> str:
    """Return 16 hex digits that identify the text encoder and the tokenizer of a model folder."""
    return _digest(model / "text_encoder", *sorted((model / "tokenizer").glob("tokenizer*")))


def _digest(part: Path, *files: Path) -> str:
    digest = hashlib.sha256(f"{RECIPE} {fingerprint_weights(part)}".encode())
    digest.update(stored_config(part))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class EncoderSettings:
    """What encodes a shard: the VAE of a model, for images of a size, or its text encoder."""

    model: str
    size: int | None = None
    system: str | None = None


@dataclass(frozen=True)
class _EncodeJob:
    """One shard to encode; `wanted` are the keys of the samples, None: all."""

    version: Version
    encoder: EncoderSettings
    tar: str
    wanted: frozenset[str] | None


def _encode(
    begun: list[tuple[Version, EncoderSettings]],
    tars: list[str],
    chosen: dict[str, frozenset[str]] | None,
    workers: Workers,
    notify: Callable[[str], None],
) -> Iterator[tuple[Version, dict, dict[str, str], int]]:
    """Write overlays shard by shard, reusing what was encoded from the same content.

    `chosen` are the keys of the selected samples by tar, None for all. Yields each version with the record of
    `encode_shard`.
    """
    wanted = [None if chosen is None else chosen.get(filesystem.basename(tar), frozenset()) for tar in tars]
    jobs = [
        _EncodeJob(version, encoder, tar, keys)
        for version, encoder in begun
        for tar, keys in zip(tars, wanted, strict=True)
    ]
    inputs = [*tars[:1], *(encoder.model for _, encoder in begun[:1] if Path(encoder.model).is_dir())]
    outputs = [version.shards for version, _ in begun[:1]]
    records = run_items(encode_shard, jobs, workers, outputs=outputs, inputs=inputs, gpu=True, notify=notify)
    for version, _ in begun:
        for row, bad, number in islice(records, len(tars)):
            yield version, row, bad, number
        version.finish(tars)


def encode_shard(job: _EncodeJob) -> tuple[dict, dict[str, str], int]:
    """Encode a shard; return its row, key -> reason of each unreadable image, and the number of samples.

    Raises:
        LuminaError: if the model of this machine is not the one that the version was begun with.
    """
    version, tar, entries = job.version, job.tar, read_index(job.tar)
    keys = {entry["key"] for entry in entries}
    wanted = keys if job.wanted is None else keys & job.wanted
    row = {"overlay": version.name, "shard": tar, "samples": len(entries)}
    count = {"encoded": 0, "reused": 0, "unreadable": 0}
    kind = _open_kind(job.encoder, version)
    current = kind.is_current(tar, entries, wanted)
    if not current:
        version.write(tar, entries, kind.parts(tar, entries, wanted, count))
    known = version.lines(tar, entries)
    bad = {key: known[key].get("unreadable", "") for key in wanted & known.keys() if is_rejected(known[key])}
    count |= {"unreadable": len(bad)} | ({"reused": len(wanted) - len(bad)} if current else {})
    return row | count, {key: bad[key] for key in sorted(bad)}, len(wanted)


def _open_kind(encoder: EncoderSettings, version: Version) -> Latents | Features:
    if encoder.size is not None:
        return Latents(
            version, _open_encoder(encoder.model, "vae", version.settings["encoder"]), encoder.size
        )
    joiner = OverlayJoiner(find_overlays(version.shards))
    encode = _open_encoder(encoder.model, "text", version.settings["encoder"])
    return Features(version, encode, encoder.system or "", joiner)


@lru_cache(maxsize=2)
def _open_encoder(model: str, part: str, digest: str) -> Callable:
    """Return the function that encodes, opened once in each process.

    Raises:
        LuminaError: if the weights on this machine have another digest.
    """
    from lumina_cli.core.encoders.text import TextEncoder
    from lumina_cli.core.encoders.vae import Autoencoder

    folder = find_model(model)
    if (vae_digest if part == "vae" else text_digest)(folder) != digest:
        raise LuminaError(f"{folder} on {gethostname()} has other weights than where the run was started")
    kind = Autoencoder if part == "vae" else TextEncoder
    return kind(folder, pick_device()).encode
