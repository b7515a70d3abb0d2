"""Facts in captions of nano scenes: their density, their correctness, and the agreement of two files.

Facts are objects, (object, tint), (object, number) and relations, as parsed by nano/caption_parser.py.
Agreement is the Dice coefficient of the facts of two captions of an image, 0 to 1.
"""

from collections.abc import Iterator, Sequence
from statistics import mean

from lumina_cli.core.evals.captions.compare import CaptionFile
from lumina_cli.core.evals.captions.density import length_of
from lumina_cli.core.evals.captions.truth import scene_of, score_captions
from lumina_cli.core.nano.caption_parser import Facts, parse_caption
from lumina_cli.core.nano.captions import LANGUAGES


def scenes_of(files: Sequence[CaptionFile]) -> dict[str, dict]:
    """Return the nano scenes by image, from all files."""
    rows = ((image, row) for file in files for image, row in file.rows.items())
    return {image: row["scene"] for image, row in rows if scene_of(row)}


def add_facts(files: Sequence[CaptionFile], rows: Sequence[dict]) -> Iterator[dict]:
    """Yield the rows of `summarize`, with figures from the nano scenes of their images, if there are any.

    Adds "truth" (precision, recall, F1 and the F1 of the prior, for objects, colors, counts and relations),
    "facts" (facts per 100 words; zh, ja: characters) and "fact_agreement" (agreement with other files).
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
    rows = [row | {"scene": scenes[image]} for image, row in file.rows.items() if image in scenes]
    if not rows:
        return {}
    scored = [row for row in score_captions(rows) if row["lang"] in LANGUAGES]
    return {
        (row["lang"], row["level"]): {k: v for k, v in row.items() if isinstance(v, dict)} for row in scored
    }


def _density(facts: dict[str, Facts], texts: dict[str, str], lang: str) -> dict[str, float]:
    words = max(1, sum(length_of(texts[image], lang) for image in facts))
    sums = {
        "objects": sum(len(each.kinds) for each in facts.values()),
        "attributes": sum(len(each.tints) for each in facts.values()),
        "relations": sum(len(each.relations) for each in facts.values()),
    }
    return {name: round(100 * count / words, 2) for name, count in sums.items()}


def _agreement(first: dict[str, Facts], second: dict[str, Facts]) -> float | None:
    pairs = [(_all_facts(first[image]), _all_facts(second[image])) for image in first if image in second]
    if not pairs:
        return None
    return round(mean(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs), 4)


def _all_facts(facts: Facts) -> frozenset:
    return facts.kinds | facts.tints | facts.counts | facts.relations
