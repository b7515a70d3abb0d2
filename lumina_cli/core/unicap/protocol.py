"""The interface of captioning engines: questions, answers, and the engine protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from lumina_cli.core.limits import read_json_file


@dataclass(frozen=True)
class Question:
    """One question to a model: a text, optionally with an image.

    text        the prompt
    level lang  level and language of the requested caption; empty if `form` requests several
    seed        random seed; the answer does not depend on the other questions of a batch
    max_tokens  token limit of the answer
    image       RGB image, or None for a question about text
    attempt     0 for the first attempt; later attempts sample at a higher temperature
    form        JSON schema of the answer, or None for plain text
    """

    text: str
    level: str
    lang: str
    seed: int
    max_tokens: int
    image: Image.Image | None = None
    attempt: int = 0
    form: dict[str, Any] | None = None


class Answer(NamedTuple):
    """An answer of an engine.

    text        the generated text
    finished    False if it was cut off at the token limit
    tokens      number of generated tokens; 0 if the engine does not report it
    error       the reason for a missing text, or None
    """

    text: str
    finished: bool
    tokens: int = 0
    error: str | None = None


class Captioner(Protocol):
    """A captioning engine: answers the questions of a batch, of all levels and languages, in one call.

        structured   "guided": the engine enforces `form`; "asked": the prompt does; None: unsupported
        reads_text   whether it answers questions without an image
        takes_instructions  whether it answers questions of the user, not only those that it was trained on
        heeds_hints  whether the prompt of a retry may mention what was wrong
        domain       the domain of the instructions that it was trained on; None for any
        languages    supported languages; None for any
        lanes        number of batches that it processes concurrently
        one_by_one   whether each image is a batch of its own, whose row is written as soon as it is finished
        found        the model that it runs if none was named; None without a name
        own_check    scorer that rejects captions of unsuitable images; None if the engine supports any image

    A distributed engine has `map_rows` instead of `answer`; see engines/ray.py.
    """

    structured: str | None
    reads_text: bool
    takes_instructions: bool
    heeds_hints: bool
    domain: str | None
    languages: tuple[str, ...] | None
    lanes: int
    one_by_one: bool
    found: str | None
    own_check: str | None

    def answer(self, questions: Sequence[Question]) -> list[Answer]: ...

    def close(self) -> None: ...


class Engine:
    """Base class of engines, with default attributes."""

    structured: str | None = None
    reads_text = True
    takes_instructions = True
    heeds_hints = True
    domain: str | None = None
    languages: tuple[str, ...] | None = None
    lanes = 1
    one_by_one = False
    found: str | None = None
    own_check: str | None = None

    def close(self) -> None:
        """Release resources; called once, also if a run is interrupted."""

    def apply_model_settings(self, model: str | None, known: Any = None) -> None:
        """Apply the settings under "captioning" in the configuration of a model.

        model    model folder, whose config.json is read if `known` is None
        known    the settings: any of domain, languages, heeds_hints and structured
        """
        if known is None and model and (Path(model) / "config.json").is_file():
            try:
                known = read_json_file(Path(model) / "config.json")
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
