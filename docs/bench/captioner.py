"""How true the nano captioner is: `python docs/bench/captioner.py [--scenes 200] [--held-out]`.

Captions unseen scenes at every level in every language, as `lumina caption --engine nano` does, and prints a
table: precision / recall and F1, in brackets precision / recall of the prior, the best single answer to all.
"""

import argparse
import time

from lumina_cli.core.evals.captions.truth import ASPECTS, score_captions
from lumina_cli.core.nano.captions import LANGUAGES
from lumina_cli.core.sources.nano import nano_rows
from lumina_cli.core.sources.source import open_row_image
from lumina_cli.core.unicap.batch import CaptionRequest
from lumina_cli.core.unicap.engines.nano import Captioner
from lumina_cli.core.unicap.stream import caption_rows

SEED = 800_001  # scenes that no part is trained on


def _cell(score: dict) -> str:
    """Return precision / recall and F1, and in brackets precision / recall of the prior."""
    text = f"{score['precision']:.3f} / {score['recall']:.3f}, {score['f1']:.3f}"
    prior = score.get("prior")
    return f"{text} ({prior['precision']:.2f} / {prior['recall']:.2f})" if prior else text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--model", help="a folder; the bundled one unless given")
    parser.add_argument("--held-out", action="store_true", help="combinations that training never showed")
    parser.add_argument("--derive", default="picture", help="source of the captions: `picture` or `text`")
    options = parser.parse_args()
    rows = nano_rows(options.scenes, SEED, 128, options.held_out)
    bare = ({name: row[name] for name in ("key", "image", "scene")} for row in rows)
    request = CaptionRequest(langs=LANGUAGES, derive=options.derive)
    start = time.monotonic()
    told = list(caption_rows(bare, Captioner(options.model), request, open_row_image))
    seconds = time.monotonic() - start
    print("| language | level | captions | " + " | ".join(ASPECTS) + " |")
    print("|---|---|---|" + "---|" * len(ASPECTS))
    for row in score_captions(told):
        cells = [_cell(row[aspect]) for aspect in ASPECTS]
        print(f"| {row['lang']} | {row['level']} | {row['captions']} | " + " | ".join(cells) + " |")
    rejected = sum(len(row.get("rejected_captions", ())) for row in told)
    print(f"\n{options.scenes} scenes, {rejected} captions rejected, {seconds:.0f} s")


if __name__ == "__main__":
    main()
