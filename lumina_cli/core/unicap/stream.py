"""Rows in, rows with captions out: pictures opened one batch ahead, captions checked and asked for again."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyBad
from lumina_cli.core.formats.rows import captions_of
from lumina_cli.core.unicap.checks import check
from lumina_cli.core.unicap.prompts import LANGS, LEVELS, MAX_TOKENS, check_names, instruction

Row = dict[str, Any]


class Answer(NamedTuple):
    """What a captioner wrote; `finished` is False where it was cut off at its token limit."""

    text: str
    finished: bool


class Captioner(Protocol):
    """What an engine must do: answer one question about each picture, the same for the same seed."""

    def answer(
        self, pictures: Sequence[Image.Image], question: str, seeds: Sequence[int], max_tokens: int
    ) -> list[Answer]: ...


@dataclass
class Shot:
    """A row on its way: its place in the stream, its picture, and what was written about it."""

    index: int
    row: Row
    picture: Image.Image | None = None
    error: str | None = None
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    rejected: list[dict] = field(default_factory=list)


def caption_rows(
    rows: Iterable[Row],
    captioner: Captioner,
    levels: Sequence[str],
    langs: Sequence[str],
    open_image: Callable[[Row], Image.Image],
    *,
    batch: int = 8,
    seed: int = 0,
    retries: int = 2,
    max_bad_rate: float = 1.0,
    on_reject: Callable[[Row, str], None] | None = None,
) -> Iterator[Row]:
    """Yield each row with `captions[lang][level]` added to those it has; reads only one batch ahead.

    A row whose picture `open_image` cannot open is left out and told to `on_reject(row, reason)`; once all
    rows are through, TooManyBad is raised where more than `max_bad_rate` of them were such. A caption that
    fails its checks is asked for again up to `retries` times, each with another seed, then dropped into
    `rejected_captions` with the reason. A caption depends on `seed` and the row's place, not on `batch`.
    """
    levels, langs = check_names("level", levels, LEVELS), check_names("language", langs, tuple(LANGS))
    seen = bad = 0
    for shots in _opened(rows, open_image, batch):
        good = [shot for shot in shots if shot.error is None]
        for lang in langs:
            for level in levels:
                _write(good, captioner, level, lang, seed, retries)
        seen, bad = seen + len(shots), bad + len(shots) - len(good)
        for shot in shots:
            if shot.error is None:
                yield _finished_row(shot)
            elif on_reject is not None:
                on_reject(shot.row, shot.error)
    if bad > max_bad_rate * seen:
        raise TooManyBad(
            f"{bad} of {seen} pictures could not be opened ({bad / seen:.0%}); "
            f"--max-bad-rate allows {max_bad_rate:.0%}"
        )


def _write(shots: list[Shot], captioner: Captioner, level: str, lang: str, seed: int, retries: int) -> None:
    """Ask for one caption of each picture, and again for those that fail; note it, or the reason."""
    question = instruction(level, lang)
    for attempt in range(retries + 1):
        if not shots:
            return
        seeds = [_seed(seed, shot.index, lang, level, attempt) for shot in shots]
        pictures = [shot.picture for shot in shots]
        failed = []
        answers = captioner.answer(pictures, question, seeds, MAX_TOKENS[level])
        for shot, answer in zip(shots, answers, strict=True):
            text = " ".join(answer.text.split())
            reason = check(text, level, lang)
            if reason is None and not answer.finished:
                reason = f"cut off at {MAX_TOKENS[level]} tokens"
            if reason is None:
                shot.captions.setdefault(lang, {})[level] = text
            else:
                failed.append((shot, text, reason))
        shots = [shot for shot, _, _ in failed]
    for shot, text, reason in failed:
        shot.rejected.append({"lang": lang, "level": level, "reason": reason, "text": text})


def _seed(seed: int, index: int, lang: str, level: str, attempt: int) -> int:
    key = f"{seed}/{index}/{lang}/{level}/{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest())


def _finished_row(shot: Shot) -> Row:
    """Merge new captions over the row's own; a caption that failed leaves an older one of its kind alone."""
    merged = captions_of(shot.row)
    for lang, texts in shot.captions.items():
        merged.setdefault(lang, {}).update(texts)
    row = {**shot.row, "captions": merged}
    row.pop("rejected_captions", None)
    return {**row, "rejected_captions": shot.rejected} if shot.rejected else row


def _opened(
    rows: Iterable[Row], open_image: Callable[[Row], Image.Image], batch: int
) -> Iterator[list[Shot]]:
    """Yield lists of up to `batch` shots, their pictures opened by threads while the list before is used."""

    def opened(shot: Shot) -> Shot:
        try:
            captions_of(shot.row)
            shot.picture = open_image(shot.row)
        except (LuminaError, OSError) as error:
            shot.error = str(error)
        return shot

    with ThreadPoolExecutor(2) as pool:
        coming = None
        for shots in _batched((Shot(index, row) for index, row in enumerate(rows)), batch):
            ahead = [pool.submit(opened, shot) for shot in shots]
            if coming is not None:
                yield [future.result() for future in coming]
            coming = ahead
        if coming is not None:
            yield [future.result() for future in coming]


def _batched(items: Iterator, size: int) -> Iterator[list]:
    """Yield lists of up to `size` items."""
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
