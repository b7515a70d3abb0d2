"""What compared captions of nano scenes say as facts: how dense, how true, and whether two files agree.

Facts are objects, (object, tint), (object, number) and relations, read back by caption_parser.py. Agreement
is the share of facts that two captions of a picture have in common, 0 to 1 (Dice).
"""

from collections.abc import Iterator, Sequence
from statistics import mean

from lumina_cli.core.evals.captions.compare import CaptionFile
from lumina_cli.core.evals.captions.density import length_of
from lumina_cli.core.evals.captions.truth import scene_of, score_captions
from lumina_cli.core.nano.caption_parser import Facts, parse_caption
from lumina_cli.core.nano.captions import LANGUAGES


def scenes_of(files: Sequence[CaptionFile]) -> dict[str, dict]:
    """Return the nano scene of each picture that any file knows one of."""
    rows = ((picture, row) for file in files for picture, row in file.rows.items())
    return {picture: row["scene"] for picture, row in rows if scene_of(row)}


def add_facts(files: Sequence[CaptionFile], rows: Sequence[dict]) -> Iterator[dict]:
    """Yield the rows of `summarize` with what is known by the scenes of their pictures, if anything is.

    "truth" holds precision, recall, F1 and the prior's F1 of objects, colours, counts and relations; "facts"
    how many a caption tells per 100 words (zh, ja: characters); "fact_agreement" that with other files.
    """
    scenes = scenes_of(files)
    truth = {file.name: _truth(file, scenes) for file in files} if scenes else {}
    facts: dict[tuple, dict[str, Facts]] = {}
    for row in rows:
        kind = row["lang"], row["level"]
        if kind not in truth.get(row["file"], {}):
            yield row
            continue
        for file in files:
            if (file.name, kind) not in facts:
                texts = file.texts(kind)
                facts[file.name, kind] = {
                    p: parse_caption(texts[p], row["lang"]) for p in texts if p in scenes
                }
        own = facts[row["file"], kind]
        file = next(file for file in files if file.name == row["file"])
        others = {
            other.name: _agreement(own, facts[other.name, kind]) for other in files if other is not file
        }
        row = row | {"truth": truth[file.name][kind], "facts": _density(own, file.texts(kind), row["lang"])}
        yield row | {"fact_agreement": {name: value for name, value in others.items() if value is not None}}


def _truth(file: CaptionFile, scenes: dict[str, dict]) -> dict[tuple[str, str], dict]:
    rows = [row | {"scene": scenes[picture]} for picture, row in file.rows.items() if picture in scenes]
    if not rows:
        return {}
    told = [row for row in score_captions(rows) if row["lang"] in LANGUAGES]
    return {
        (row["lang"], row["level"]): {k: v for k, v in row.items() if isinstance(v, dict)} for row in told
    }


def _density(facts: dict[str, Facts], texts: dict[str, str], lang: str) -> dict[str, float]:
    words = max(1, sum(length_of(texts[picture], lang) for picture in facts))
    sums = {
        "objects": sum(len(each.kinds) for each in facts.values()),
        "attributes": sum(len(each.tints) for each in facts.values()),
        "relations": sum(len(each.relations) for each in facts.values()),
    }
    return {name: round(100 * count / words, 2) for name, count in sums.items()}


def _agreement(first: dict[str, Facts], second: dict[str, Facts]) -> float | None:
    pairs = [(_said(first[picture]), _said(second[picture])) for picture in first if picture in second]
    if not pairs:
        return None
    return round(mean(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs), 4)


def _said(facts: Facts) -> frozenset:
    return facts.kinds | facts.tints | facts.counts | facts.relations
