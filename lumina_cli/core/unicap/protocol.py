"""What the stream asks an engine, and what comes back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image


@dataclass(frozen=True)
class Question:
    """One thing to ask a model: a text, about a picture where there is one.

    text        what to say to the model
    level lang  of the caption that is asked for; both empty where `form` asks for several at once
    seed        the same seed gives the same answer, whatever is asked beside it
    max_tokens  an answer that needs more is cut off there
    picture     8-bit RGB, or None where the text says all
    attempt     0 at first; later ones are drawn more freely
    form        a JSON schema that the answer has to follow, or None for plain text
    """

    text: str
    level: str
    lang: str
    seed: int
    max_tokens: int
    picture: Image.Image | None = None
    attempt: int = 0
    form: dict[str, Any] | None = None


class Answer(NamedTuple):
    """What a captioner wrote; `finished` is False where it was cut off at its token limit.

    `tokens` counts what was written, 0 where the engine does not know; `error` says why there is no text.
    """

    text: str
    finished: bool
    tokens: int = 0
    error: str | None = None


class Captioner(Protocol):
    """What an engine does: answer questions, all levels and languages of a batch in one call.

        structured   "guided": the model is held to `form`; "asked": it is only told; None: neither
        reads_text   whether it answers questions without a picture
        heeds_hints  whether a retry may say in other words what was wrong
        domain       the domain whose instructions it was trained on; None where any will do
        languages    those that it writes; None for any
        lanes        batches that it works on at a time

    An engine that spreads rows over machines has `map_rows` in place of `answer`; see engines/ray.py.
    """

    structured: str | None
    reads_text: bool
    heeds_hints: bool
    domain: str | None
    languages: tuple[str, ...] | None
    lanes: int

    def answer(self, questions: Sequence[Question]) -> list[Answer]: ...

    def close(self) -> None: ...


class Engine:
    """The attributes of most engines, for them to start from."""

    structured: str | None = None
    reads_text = True
    heeds_hints = True
    domain: str | None = None
    languages: tuple[str, ...] | None = None
    lanes = 1

    def close(self) -> None:
        """Let go of what is open; called once, also when a run is interrupted."""

    def learn_manners(self, model: str | None, known: Any = None) -> None:
        """Take over what a model's configuration says under "captioning" of how it wants to be asked.

        That is any of domain, languages, heeds_hints and structured: {"domain": "synthetic"}. `known` is that
        value where the model is open; else the config.json of `model` is read, if that is a folder here.
        """
        if known is None and model and (Path(model) / "config.json").is_file():
            try:
                known = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
                known = known.get("captioning") if isinstance(known, dict) else None
            except (OSError, ValueError):
                known = None
        known = known if isinstance(known, dict) else {}
        if isinstance(known.get("domain"), str):
            self.domain = known["domain"]
        if isinstance(known.get("languages"), list):
            self.languages = tuple(map(str, known["languages"]))
        if known.get("heeds_hints") is False:
            self.heeds_hints = False
        if "structured" in known and known["structured"] is None:
            self.structured = None
