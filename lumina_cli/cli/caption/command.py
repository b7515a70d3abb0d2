"""`lumina caption`: write rows with captions of images."""

import re
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lumina_cli.cli import options as shared
from lumina_cli.cli import output
from lumina_cli.cli.caption import options
from lumina_cli.cli.caption.sidecars import ROWS, Sidecars
from lumina_cli.core.io.jsonl import is_in_memory, parse_split
from lumina_cli.core.secrets import mask_url


def caption(
    source: options.Source,
    levels: options.Levels = None,
    langs: options.Langs = "en",
    instruction: options.Instruction = None,
    prefix: options.Prefix = None,
    domain: options.Domain = "auto",
    derive: options.Derive = "picture",
    seed: options.Seed = 0,
    retries: options.Retries = 2,
    score: options.Score = None,
    max_bad_rate: options.MaxBadRate = 0.05,
    engine: options.Engine = "transformers",
    model: options.Model = None,
    endpoint: options.Endpoint = None,
    batch: options.Batch = 8,
    device: options.Device = None,
    keep: options.Keep = False,
    replace: options.Replace = False,
    reuse: options.Reuse = None,
    out: options.Out = None,
    sidecars: options.SidecarFiles = False,
    split: options.SplitOption = None,
    allow: options.Allow = None,
    shard: shared.DeprecatedShard = None,
    json: shared.Json = False,
) -> None:
    """Caption images at several levels of detail, in any language. Writes one row per image.

    With --out, the rows are written to a file, an interrupted run can be resumed, and stdout gets one row of
    statistics. Without --out, rows of unreadable images are passed on with an "error". Captions that fail
    their checks are requested again with another seed. "captioned_by" lists the captions that this run wrote.

    Rows of nano:N and hf:NAME have no "image", because their images are not files. To keep images and
    captions together, pack the source first: `lumina shard SOURCE DIR`, then `lumina caption DIR`.

    Examples:

        lumina caption photos --levels short,tags --langs en,de --out captions.jsonl
        lumina caption data --engine openai --endpoint http://localhost:8000/v1
        lumina caption data --score clip@0.2 | lumina shard overlay data -
        lumina caption photos --levels tags --prefix "ohwx dog" --sidecars
    """
    output.show_status(f"loading the engine {engine}")
    from lumina_cli.core.sources.count import count_source
    from lumina_cli.core.sources.source import open_row_image, read_source
    from lumina_cli.core.unicap.engines import open_engine
    from lumina_cli.core.unicap.items import CaptionRequest
    from lumina_cli.core.unicap.prompts import LEVELS, format_list
    from lumina_cli.core.unicap.run import run_captions
    from lumina_cli.core.unicap.scoring.clip import open_scorer
    from lumina_cli.core.unicap.stats import CaptionObserver, CaptionStats

    own = parse_split(shared.resolve_split(split, shard))
    writer = ":".join(filter(None, (engine.removeprefix("ray:"), model)))
    own_text = _read_instruction(instruction)
    request = CaptionRequest(
        format_list(levels if levels is not None else "detailed" if instruction else ",".join(LEVELS)),
        format_list(langs),
        domain,
        derive,
        seed,
        retries,
        score,
        keep,
        writer,
        replace,
        own_text,
        prefix,
    )
    for one in source:
        shared.note_missing_values(one)
    files, out = _open_sidecars(request, out) if sidecars else (None, out)
    rows = chain.from_iterable(
        [_check_source(one, read_source(one, lenient=True, notify=_write_note), files) for one in source]
    )
    counts = [count_source(one) for one in source]
    stats = CaptionStats(None if None in counts else sum(counts))
    counter = output.ProgressCounter(stats.total)

    class Observer(CaptionObserver):
        def on_progress(self) -> None:
            counter(stats.seen, stats.done, stats.total)

        def on_message(self, message: str) -> None:
            _write_note(message)

    rows = run_captions(
        rows,
        partial(open_engine, engine, model, device, endpoint, batch),
        request,
        open_row_image,
        split=own,
        out=out,
        reuse=reuse,
        settings={
            "sources": [mask_url(each) for each in source],
            "engine": engine.removeprefix("ray:"),
            "model": model,
        },
        batch=batch,
        max_bad_rate=max_bad_rate,
        scorer=partial(open_scorer, score, device, stats) if score else None,
        observer=Observer(stats),
    )
    rows = files.follow(rows) if files else rows
    try:
        if out is None:
            output.write_rows(rows, json=json, label="captions", total=counter)
        else:  # rows may hold decoded images, so none is kept
            deque(output.track_progress(rows, "captions", counter), maxlen=0)
    finally:
        if stats.counts or stats.idle:
            _write_note(stats.line())
            if files is not None:
                if out is not None and stats.done:
                    _complete_sidecars(files, out)
                _write_note(files.line())
    if out is not None:
        output.write_rows([{"out": str(out), **stats.row()}], json=json)


def _read_instruction(text: str | None) -> str | None:
    """Return the text of --instruction, or that of the file that it names."""
    from lumina_cli.core.errors import LuminaError
    from lumina_cli.core.io.captions import decode_text

    if text is not None and re.fullmatch(r"\S+\.(?:txt|md)", text) and not Path(text).expanduser().exists():
        raise LuminaError(f"--instruction {text}: no such file")
    try:
        if text is None or "\n" in text or not Path(text).expanduser().is_file():
            return text
        return decode_text(Path(text).expanduser().read_bytes(), text)
    except OSError as error:  # a text that is too long for the name of a file, or an unreadable file
        if len(text) > 255:
            return text
        raise LuminaError(f"--instruction {text}: {(error.strerror or 'cannot be read').lower()}") from error


def _open_sidecars(request: Any, out: Path | None) -> tuple[Sidecars, Path | None]:
    """Return the .txt files of a run and its file of rows; an --out without suffix is a folder."""
    folder = out if out is not None and (out.is_dir() or not out.suffix) else None
    return Sidecars(request.pairs, folder, request.replace), folder / ROWS if folder else out


def _complete_sidecars(files: Sidecars, out: Path) -> None:
    """Write the .txt files that an interrupted run left out."""
    from lumina_cli.core.io.jsonl import read_rows

    for row in read_rows(out):
        files.write(row, only_missing=True)


def _check_source(source: str, rows: Iterator[dict], files: Sidecars | None) -> Iterator[dict]:
    """Yield the rows; print a note before the first one if their images are not files."""
    for number, row in enumerate(rows):
        if files is not None and number == 0:
            files.check(row)
        if number == 0 and is_in_memory(row.get("image")):
            _write_note(
                f"images of {source} are not files, so its rows have no 'image'; to keep both, run "
                f"`lumina shard {source} DIR`, then `lumina caption DIR`"
            )
        yield row


def _write_note(line: str) -> None:
    output.write_note(f"lumina caption: {line}")
