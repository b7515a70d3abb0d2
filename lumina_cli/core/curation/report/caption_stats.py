"""Statistics of captions: lengths by language and level, tokens, missing and rejected captions.

N samples, K captions of all samples.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from lumina_cli.core.curation.report.caption_texts import CaptionTexts, examine_samples
from lumina_cli.core.curation.report.figures import quantiles, rank_counts
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.io.html import histogram
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.overlays.reader import find_overlays, split_source
from lumina_cli.core.shards.reader import open_shards, read_totals
from lumina_cli.core.shards.selection import is_selection, selected_entries
from lumina_cli.core.shards.tar import iter_index
from lumina_cli.core.shards.writer import count_rejected_captions
from lumina_cli.core.sources.source import read_source

MAX_TOKENS = 256  # of a caption that training uses, including its system prompt
EMBEDDED = "nano"  # the tokenizer that counts if nothing else does
BATCH = 4096  # captions tokenized together

Count = Callable[[list[str]], list[int]]


@dataclass(frozen=True)
class _Captions:
    """The captions of a table of N samples, flattened to K captions.

    owners      (K,) index of the sample of each caption
    lang        (K,) index into `langs`
    level       (K,) index into `levels`
    kind        (K,) index into `names`, the pairs LANGUAGE.LEVEL
    characters  (K,) length of each caption
    tokens      pyarrow lists of the numbers of tokens, as in the table
    """

    owners: np.ndarray
    lang: np.ndarray
    langs: list[str]
    level: np.ndarray
    levels: list[str]
    characters: np.ndarray
    tokens: Any

    @cached_property
    def names(self) -> list[str]:
        return [f"{lang}.{level}" for lang in self.langs for level in self.levels]

    @cached_property
    def kind(self) -> np.ndarray:
        return self.lang * len(self.levels) + self.level

    def lengths(self) -> dict[str, np.ndarray]:
        """Return kind -> lengths in characters, English first, and of a language the longest level first."""
        kinds = {self.names[code]: self.characters[self.kind == code] for code in np.unique(self.kind)}

        def rank(name: str) -> tuple:
            lang = name.split(".")[0]
            return lang != "en", lang, -np.mean(kinds[name])

        return {name: kinds[name] for name in sorted(kinds, key=rank)}


def caption_stats(table: Any, source: str, folder: str, count: Count | None) -> tuple[dict, dict]:
    """Return the summary of the captions of a sample table, and their plots by name.

    `count` counts the tokens of texts; None: the counts in the shards are used or, if there are none, the
    bundled tokenizer. `folder` is that of the shards of `source`.
    """
    found = _flatten(table)
    stored, by = _stored_tokens(found), _counted_by(folder)
    if count is None and (not stored or by == TokenCounter(EMBEDDED).digest):
        count = TokenCounter(EMBEDDED)
    usable = bool(stored) and (count is None or by == getattr(count, "digest", ""))
    texts = CaptionTexts()
    if usable and not find_overlays(folder, split_source(source)[1]):
        tokens, rejected = stored, _count_rejected(source)
        examine_samples(source, len(table), texts)
    else:  # overlays may replace captions, and only rows contain their texts
        counted, rejected = _count_in_rows(source, None if usable else count, texts)
        tokens = stored if usable else counted
    prompt = 1 + count([full_prompt("", "real")])[0] if count else 0  # 1: the <bos> token
    kinds, plots = _describe_kinds(found.lengths(), tokens, prompt, len(table))
    every = np.concatenate([np.array(values) for values in tokens.values()]) + prompt if tokens else None
    over = None if every is None else round(float((every > MAX_TOKENS).mean()), 5)
    summary = {"captions": kinds, "languages": _count_samples(found.owners, found.lang, found.langs)}
    summary["levels"] = _count_samples(found.owners, found.level, found.levels)
    summary["caption_texts"] = texts.summary(len(found.owners))
    summary["without_captions"] = len(table) - len(np.unique(found.owners))
    summary |= {"over_256_tokens": over, "system_prompt_tokens": prompt or None}
    summary |= {"tokenizer": _tokenizer(count, by) if tokens else None, "rejected_captions": rejected}
    return summary, plots


def _flatten(table: Any) -> _Captions:
    """Return the captions of a sample table."""
    import pyarrow.compute as pc

    lists = {name: table[name].combine_chunks() for name in ("languages", "levels", "characters", "tokens")}
    owners = pc.list_parent_indices(lists["characters"]).to_numpy().astype(np.int64)
    langs, levels = (pc.list_flatten(lists[name]).dictionary_encode() for name in ("languages", "levels"))
    lang, level = (codes.indices.to_numpy().astype(np.int64) for codes in (langs, levels))
    characters = pc.list_flatten(lists["characters"]).to_numpy(zero_copy_only=False)
    names = (langs.dictionary.to_pylist(), levels.dictionary.to_pylist())
    return _Captions(owners, lang, names[0], level, names[1], characters, lists["tokens"])


def _describe_kinds(
    lengths: dict[str, np.ndarray], tokens: dict[str, Any], prompt: int, samples: int
) -> tuple[dict, dict]:
    """Return the figures of each kind of caption, and their plots; `prompt` tokens precede each caption."""
    found, plots = {}, {}
    for kind, characters in lengths.items():
        found[kind] = {"captions": len(characters), "share": round(len(characters) / samples, 5)}
        found[kind]["characters"] = quantiles(characters)
        plots[f"characters {kind}"] = histogram(characters)
        if kind in tokens:
            numbers = np.array(tokens[kind]) + prompt
            found[kind]["tokens"] = quantiles(numbers)
            found[kind]["over_256_tokens"] = round(float((numbers > MAX_TOKENS).mean()), 5)
            plots[f"tokens {kind}"] = histogram(numbers, mark=MAX_TOKENS + 1)
    return found, plots


def _counted_by(folder: str) -> str | None:
    """Return the digest of the tokenizer that counted the tokens in the shards, if any."""
    totals = None if folder.endswith(".tar") else read_totals(folder)
    return (totals or {}).get("settings", {}).get("tokenizer")


def _stored_tokens(found: _Captions) -> dict[str, np.ndarray]:
    """Return kind of caption -> the numbers of tokens in the shards; {} if the shards do not contain them."""
    import pyarrow.compute as pc

    stored = pc.list_flatten(found.tokens)
    if len(stored) != len(found.kind) or stored.null_count == len(stored):
        return {}  # counted for some of the shards only, or for none
    numbers = stored.to_numpy(zero_copy_only=False).astype(np.float64)
    known = ~np.isnan(numbers)
    kinds = {found.names[code]: numbers[(found.kind == code) & known] for code in np.unique(found.kind)}
    return {name: values for name, values in kinds.items() if len(values)}


def _count_samples(owners: np.ndarray, codes: np.ndarray, names: list[str]) -> dict[str, int]:
    """Return name -> number of samples with a caption of this code; `owners` and `codes` are (captions,)."""
    pairs = np.unique(owners * len(names) + codes) if names else codes
    counts = np.bincount(pairs % len(names), minlength=len(names)) if names else []
    return rank_counts({name: int(n) for name, n in zip(names, counts, strict=True)})


def _tokenizer(count: Count | None, by: str | None) -> str:
    """Return what counted the tokens: a name, a path, or the digest in the shards."""
    if count is None:
        return f"that of the shards ({by})"
    digest = getattr(count, "digest", None)
    return EMBEDDED if digest == TokenCounter(EMBEDDED).digest else str(getattr(count, "path", "given"))


def _count_in_rows(
    source: str, count: Count | None, texts: CaptionTexts
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Read all rows; return kind of caption -> numbers of tokens, and how often each caption check failed.

    Tokens are counted only if `count` is given. All captions are added to `texts`.
    """
    found: dict[str, list[int]] = {}
    rejected: Counter = Counter()
    pending: list[tuple[str, str]] = []

    def flush() -> None:
        """Count the tokens of the pending captions."""
        for (kind, _), number in zip(pending, count([text for _, text in pending]), strict=True):
            found.setdefault(kind, []).append(number)
        pending.clear()

    for row in read_source(source):
        rejected.update(count_rejected_captions(row))
        texts.add_row(row)
        for lang, levels in get_captions(row, str(row["image"])).items() if count else ():
            pending.extend((f"{lang}.{level}", text) for level, text in levels.items())
        if len(pending) > BATCH:
            flush()
    if pending:
        flush()
    return found, rank_counts(rejected)


def _count_rejected(source: str) -> dict[str, int]:
    """Return how often each caption check failed, from the indexes of the shards."""
    rejected: Counter = Counter()
    if is_selection(source):
        lines = chain.from_iterable(chosen for _, _, chosen in selected_entries(source))
    else:
        lines = chain.from_iterable(map(iter_index, open_shards(split_source(source)[0])))
    for line in lines:
        rejected.update(line.get("rejected_captions") or {})
    return rank_counts(rejected)
