"""`lumina caption`: pictures in, rows with captions out."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain

from lumina_cli.cli import output
from lumina_cli.cli.caption import options as flags
from lumina_cli.core.io.jsonl import is_in_memory, parse_split


def caption(
    source: flags.Source,
    levels: flags.Levels = "detailed,medium,short,tags",
    langs: flags.Langs = "en",
    domain: flags.Domain = "auto",
    derive: flags.Derive = "picture",
    keep: flags.Keep = False,
    reuse: flags.Reuse = None,
    out: flags.Out = None,
    shard: flags.Shard = None,
    seed: flags.Seed = 0,
    retries: flags.Retries = 2,
    score: flags.Score = None,
    max_bad_rate: flags.MaxBadRate = 0.05,
    engine: flags.Engine = "transformers",
    model: flags.Model = None,
    endpoint: flags.Endpoint = None,
    batch: flags.Batch = 8,
    device: flags.Device = None,
    json: flags.Json = False,
) -> None:
    """Describe pictures at several lengths, in several languages. Pictures in, rows with captions out.

    lumina caption photos --levels short,tags --langs en,de --out rows.jsonl

    With --out a run that was killed goes on where it stopped, and stdout has a row of statistics; a pipe
    cannot be continued, and passes rows of unreadable pictures on, with "error". Each caption is checked, and
    asked for again with another seed where it fails. A row's "captioned_by" tells which are new.

    Pictures of nano:N and hf:NAME are in no file that a row could name, so their rows come out without
    "image". To keep the two together: lumina shard nano:N DIR, then lumina caption DIR.
    """
    from lumina_cli.core.sources.count import count_source
    from lumina_cli.core.sources.source import open_row_image, read_source
    from lumina_cli.core.unicap.batch import CaptionRequest
    from lumina_cli.core.unicap.engines import open_engine
    from lumina_cli.core.unicap.prompts import format_list
    from lumina_cli.core.unicap.run import run_captions
    from lumina_cli.core.unicap.scoring.clip import open_scorer
    from lumina_cli.core.unicap.stats import CaptionStats

    writer = ":".join(filter(None, (engine.removeprefix("ray:"), model)))
    job = CaptionRequest(
        format_list(levels), format_list(langs), domain, derive, seed, retries, score, keep, writer
    )
    rows = chain.from_iterable([_watched(one, read_source(one, lenient=True)) for one in source])
    counts = [count_source(one) for one in source]
    tally = CaptionStats(None if None in counts else sum(counts))
    meter = output.Meter(tally.total)
    tally.watch = lambda: meter(tally.seen, tally.done, tally.total)
    rows = run_captions(
        rows,
        partial(open_engine, engine, model, device, endpoint, batch),
        job,
        open_row_image,
        share=parse_split(shard),
        out=out,
        reuse=reuse,
        settings={"sources": source, "engine": engine.removeprefix("ray:"), "model": model},
        batch=batch,
        max_bad_rate=max_bad_rate,
        scorer=partial(open_scorer, score, device, tally) if score else None,
        tally=tally,
        tell=_say,
    )
    try:
        if out is None:
            output.write_rows(rows, json=json, label="captions", total=meter)
        else:
            deque(output.progress(rows, "captions", meter), maxlen=0)  # rows may hold pictures: none is kept
    finally:
        if tally.counts or tally.idle:
            _say(tally.line())
    if out is not None:
        output.write_rows([{"out": str(out), **tally.row()}], json=json)


def _watched(source: str, rows: Iterator[dict]) -> Iterator[dict]:
    """Say before the first caption is written that the rows of this source will not name their pictures."""
    for number, row in enumerate(rows):
        if number == 0 and is_in_memory(row.get("image")):
            _say(
                f"the pictures of {source} are in no file, so its rows come out without 'image'; "
                f"`lumina shard {source} DIR`, then `lumina caption DIR`, keeps them together"
            )
        yield row


def _say(line: str) -> None:
    output.note(f"lumina caption: {line}")
