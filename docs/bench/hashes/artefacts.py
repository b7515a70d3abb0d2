"""Text that stands for an output: the same for two runs of the same numbers, another one if a number moves.

What is hashed of a file, by its kind:

    image                 #bytes (of a PNG without its text chunks), #pixels, #metadata (what `lumina` stored)
    .json .jsonl .yaml    #values, in their order
    .tar                  #bytes, and #members: name, size and hash of each
    .parquet              #bytes, and #values: its rows
    .safetensors          #tensors: name, type, shape and hash of each
    .pt .pth              #tensors, without their names
    .npy .npz             #tensors
    .html                 #images: the decoded images that the page embeds; the rest of it is prose
    other                 #bytes

Left out of values:

    TIMES        seconds and speeds; for `bench-` commands also BENCH_TIMES
    "version"    if it is the version of the package, such as 0.1.0
    PROSE        only whether the field is empty is kept, because its words may be rewritten. Numbers under
                 such a name ("step" of a training row, "error" of a benchmark row) are kept
    DIGESTS      hashes of lines that may contain prose: of an overlay's indexes (overlay.json), and of the
                 rejects of an earlier verb (shards.json); the files are artefacts themselves
    digits       floats of `bench-` commands keep BENCH_DIGITS digits, because the last digits of a fitted
                 cache vary; the hash of such a fit ("fit:...") is left out
    folders      the working folder and the repository are written as WORK and TREE

`dpmpp_2m`, another name of the solver `dpm`, counts as `dpm`. TensorBoard event files are skipped, because
they contain the time of day. The #bytes of WebP, JPEG and AVIF images that `lumina sample` wrote contain the
version of the package.
"""

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

TIMES = frozenset(
    ("seconds", "pictures_per_second", "pictures_per_s", "tokens_per_s", "rows_per_second", "mb_per_second")
)
BENCH_TIMES = TIMES | {
    *("ms_p20", "ms_p50", "ms_p80", "s_p20", "s_p50", "s_p80", "seconds_p20", "seconds_p50", "seconds_p80"),
    *("times_sdpa", "times_diffusers", "ratio", "ratio_p20", "ratio_p80", "share", "ceiling_s"),
}
PROSE = frozenset(
    ("model_reason", "reason", "problem", "error", "why", "unavailable", "unreadable", "phase", "step")
)
DIGESTS = frozenset(("digests", "upstream"))
BENCH_DIGITS = 9
FIT = re.compile(r"fit:[0-9a-f]+")
RELEASE = re.compile(r"\d+\.\d+\.\d+\S*")
EMBEDDED = re.compile(rb"data:image/\w+;base64,([A-Za-z0-9+/=]+)")
SKIPPED = ("events.out.tfevents.",)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
PNG_TEXT = (b"tEXt", b"iTXt", b"zTXt", b"eXIf")
EXIF_DESCRIPTION, EXIF_IFD, EXIF_COMMENT = 0x010E, 0x8769, 0x9286


@dataclass(frozen=True)
class Neutral:
    """Replaces what may differ between two runs: folders (text -> its name) and fields."""

    folders: dict[str, str]
    dropped: frozenset[str] = TIMES
    digits: int | None = None  # significant digits of floats; None: all

    def of_bench(self) -> "Neutral":
        """Return one for `lumina bench`: without its times, and with floats of BENCH_DIGITS digits."""
        return replace(self, dropped=BENCH_TIMES, digits=BENCH_DIGITS)

    def text(self, text: str) -> str:
        """Return text without folders and the package's version."""
        for folder, name in self.folders.items():
            text = text.replace(folder, name)
        text = re.sub(r"lumina \d+\.\d+\.\d+", "lumina", text)
        return FIT.sub("fit", text).replace("dpmpp_2m", "dpm")

    def value(self, value: object, name: str = "") -> object:
        """Return a value of JSON, the one of the field `name`, without what may differ."""
        if isinstance(value, dict):
            return {
                self.text(key): self.value(each, key) for key, each in value.items() if self._kept(key, each)
            }
        if isinstance(value, list):
            return [self.value(each, name) for each in value]
        if isinstance(value, str):
            return bool(value) if name in PROSE else self.text(value)
        if isinstance(value, float) and self.digits:
            return float(f"{value:.{self.digits}g}")
        return value

    def _kept(self, name: str, value: object) -> bool:
        package = name == "version" and isinstance(value, str) and RELEASE.fullmatch(value)
        digest = name in DIGESTS and isinstance(value, dict | list)
        return not (package or digest or name in self.dropped)

    def lines(self, values: Iterable) -> str:
        """Return a line of JSON per value."""
        found = (json.dumps(self.value(value), ensure_ascii=False, default=str) for value in values)
        return "".join(f"{line}\n" for line in found)


def stdout_of(data: bytes, neutral: Neutral) -> str:
    """Return what stands for the output of a command: its rows, or its text."""
    return _json_lines(data.decode(), neutral)


def artefacts_of(path: Path, neutral: Neutral) -> Iterator[tuple[str, str]]:
    """Yield (aspect, text) of a file."""
    if path.name.startswith(SKIPPED):
        return
    data, suffix = path.read_bytes(), path.suffix.lower()
    if suffix in IMAGES:
        yield "bytes", _digest(_without_text(data) if suffix == ".png" else data)
        yield "pixels", _pixels(data)
        yield "metadata", _metadata(data, neutral)
    elif suffix in (".json", ".jsonl"):
        yield "values", _json_lines(data.decode(), neutral)
    elif suffix in (".yaml", ".yml"):
        yield "values", neutral.lines([yaml.safe_load(data)])
    elif suffix == ".tar":
        yield "bytes", _digest(data)
        yield "members", _members(data)
    elif suffix == ".parquet":
        yield "bytes", _digest(data)
        yield "values", neutral.lines(_parquet(path))
    elif suffix in (".safetensors", ".pt", ".pth", ".npy", ".npz"):
        yield "tensors", _tensors(path)
    elif suffix == ".html":
        yield "images", "".join(f"{_pixels(base64.b64decode(each))}\n" for each in EMBEDDED.findall(data))
    else:
        yield "bytes", _digest(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json_lines(text: str, neutral: Neutral) -> str:
    """One document, a document per line, or other text."""
    try:
        return neutral.lines([json.loads(text)])
    except ValueError:
        pass
    try:
        return neutral.lines([json.loads(line) for line in text.splitlines()])
    except ValueError:
        return neutral.text(text)


def _pixels(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.mode} {image.size} {_digest(image.tobytes())}"


def _without_text(data: bytes) -> bytes:
    """A PNG without the chunks that hold text, whose content is metadata."""
    kept, at = [data[:8]], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big") + 12
        if data[at + 4 : at + 8] not in PNG_TEXT:
            kept.append(data[at : at + length])
        at += length
    return b"".join(kept)


def _metadata(data: bytes, neutral: Neutral) -> str:
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        comment = exif.get_ifd(EXIF_IFD).get(EXIF_COMMENT) or b""
        ours = image.info.get("lumina") or exif.get(EXIF_DESCRIPTION) or ""
        parameters = image.info.get("parameters") or comment[8:].decode("utf-16-be", "replace")
    return _json_lines(ours, neutral) + neutral.text(parameters)


def _members(data: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(member.name, member.size, tar.extractfile(member).read()) for member in tar]
    return "".join(f"{name} {size} {_digest(content)}\n" for name, size, content in found)


def _parquet(path: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _tensors(path: Path) -> str:
    """A line per tensor of a file of weights or arrays, sorted."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found = [f"{name} {_tensor(tensor)}" for name, tensor in load_file(path).items()]
    elif path.suffix in (".pt", ".pth"):
        import torch

        found = list(_leaves(torch.load(path, map_location="cpu", weights_only=True)))
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            found = [f"{name} {_array(arrays[name])}" for name in arrays]
    else:
        found = [_array(np.load(path))]
    return "".join(f"{line}\n" for line in sorted(found))


def _leaves(value: object) -> Iterator[str]:
    """Yield a line per tensor and number in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    elif hasattr(value, "untyped_storage"):
        yield _tensor(value)
    elif isinstance(value, int | float | str | None):
        yield repr(value)


def _tensor(tensor) -> str:
    import torch

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {_digest(flat.tobytes())}"


def _array(array: np.ndarray) -> str:
    if array.dtype == object:
        return _digest(repr(array.tolist()).encode())
    return f"{array.dtype} {array.shape} {_digest(np.ascontiguousarray(array).tobytes())}"
