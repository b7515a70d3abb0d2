"""What is captioned: the request of a run, and the rows in progress."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io.jsonl import get_captions, get_error, get_error_code, is_in_memory
from lumina_cli.core.unicap.prompts import (
    DOMAINS,
    LEVELS,
    check_instruction,
    check_languages,
    check_names,
)
from lumina_cli.core.unicap.protocol import Captioner
from lumina_cli.core.unicap.reuse import (
    merge_captions,
    people_captions,
    reused_captions,
    without_empty,
    without_reuse_note,
)
from lumina_cli.core.unicap.structured import CaptionType

Row = dict[str, Any]
LATER_SETTINGS = ("replace", "instruction", "prefix")  # files of earlier versions do not have them
DERIVES = ("picture", "text", "once")


@dataclass(frozen=True)
class CaptionRequest:
    """The captions requested for each image.

    levels     caption levels
    langs      languages
    domain     kind of image, which selects the instructions; with "auto", a row may set its own "domain"
    derive     source of the captions: "picture" asks about the image for each one; "text" asks for the
               detailed one and derives the others from it; "once" asks for all captions in one answer
    seed       random seed
    retries    further attempts for a caption that fails its checks
    score      scorer of captions, or None
    keep       keep all existing captions of a row and request only the missing ones
    engine     name recorded under "captioned_by"; None records nothing
    replace    replace all existing captions, also those that people wrote, which are kept by default
    instruction  question about the image instead of the built-in ones, with {level} and {language}
    prefix     text before each new caption, such as a trigger word

    Raises:
        UsageError: if a level, language, domain or source is unknown.
    """

    levels: tuple[str, ...] = LEVELS
    langs: tuple[str, ...] = ("en",)
    domain: str = "auto"
    derive: str = "picture"
    seed: int = 0
    retries: int = 2
    score: str | None = None
    keep: bool = False
    engine: str | None = None
    replace: bool = False
    instruction: str | None = None
    prefix: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "levels", check_names("level", list(self.levels), LEVELS))
        object.__setattr__(self, "langs", check_languages(list(self.langs)))
        check_names("domain", [self.domain], DOMAINS)
        check_names("derive", [self.derive], DERIVES)
        if self.keep and self.replace:
            raise UsageError("--keep and --replace exclude each other; choose one")
        if self.instruction is not None:
            check_instruction(self.instruction, self.levels, self.langs, self.derive)

    @property
    def pairs(self) -> list[CaptionType]:
        """All requested (language, level) pairs."""
        return list(itertools.product(self.langs, self.levels))

    def missing_captions(self, row: Row) -> list[CaptionType]:
        """Return the (language, level) pairs that a row still needs."""
        reused = {} if self.keep else reused_captions(row)
        kept = self.kept_captions(row)
        return [
            (lang, level)
            for lang, level in self.pairs
            if level not in reused.get(lang, ()) and level not in kept.get(lang, {})
        ]

    def kept_captions(self, row: Row) -> dict[str, dict[str, str]]:
        """Return the existing captions that this request does not replace."""
        if self.keep:
            return without_empty(get_captions(row))
        return {} if self.replace else people_captions(row)

    def settings(self) -> Row:
        """Return the settings of an output file; those of later versions only if they are set."""
        settings = dict(vars(self))
        return {name: value for name, value in settings.items() if value or name not in LATER_SETTINGS}

    def is_fully_rejected(self, finished: Row) -> bool:
        """Return whether all requested captions of a finished row were rejected."""
        rejected = finished.get("rejected_captions") or ()
        failed = {(each.get("lang"), each.get("level")) for each in rejected if isinstance(each, dict)}
        return failed.issuperset(self.pairs)

    def check_engine(self, captioner: Captioner) -> None:
        """Check that an engine supports this request.

        Raises:
            UsageError: if the engine lacks a language, or cannot derive captions as requested.
        """
        known = captioner.languages or self.langs
        foreign = [lang for lang in self.langs if lang not in known]
        if foreign:
            raise UsageError(f"this model supports {', '.join(known)}, not {', '.join(foreign)}")
        if self.instruction and not getattr(captioner, "takes_instructions", True):
            raise UsageError("this model only answers its own questions; omit --instruction")
        if self.derive == "text" and not captioner.reads_text:
            raise UsageError("this model only answers questions about images; omit --derive text")
        if self.derive == "once" and not captioner.structured:
            raise UsageError("this model cannot write all captions in one answer; omit --derive once")


@dataclass
class CaptionItem:
    """A row in progress, with its image and its new captions.

    index       position in the stream
    digest      hash of the pixels; seeds derive from it, so captions do not depend on the path of an image
    error       why the image cannot be captioned, and `code`, the reason in one word
    captions    {language: {level: text}}, and `scores` of the same shape
    rejected    captions that failed their checks, with reasons
    counts      questions asked and tokens generated
    features    cached features for scorers
    writer      name of the engine and its model
    """

    index: int
    row: Row
    image: Image.Image | None = None
    digest: bytes = b""
    error: str | None = None
    code: str | None = None
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    features: Any = None
    writer: str | None = None

    def open(self, open_image: Callable[[Row], Image.Image]) -> None:
        """Open the image and check the existing captions.

        Raises:
            LuminaError: if the image or its captions are invalid, or an earlier command recorded an error.
        """
        if error := get_error(self.row):
            raise InvalidImage(error, get_error_code(self.row))
        try:
            get_captions(self.row, _describe_row(self.row))
        except LuminaError as error:
            raise InvalidImage(str(error), "captions") from error
        self.image = open_image(self.row)
        size = "x".join(map(str, self.image.size)).encode()
        self.digest = hashlib.blake2b(size + self.image.tobytes(), digest_size=16).digest()

    def failed_row(self) -> Row:
        """Return the row with "error" and "code"; an error from an earlier command is kept."""
        row = {**without_reuse_note(self.row), "error": self.error}
        return row | {"code": self.code} if self.code and not get_error(self.row) else row

    def finished_row(self) -> Row:
        """Return the row with its new captions; a rejected caption does not replace an existing one."""
        written = self.captions.items() if self.writer else ()
        by = {lang: dict.fromkeys(levels, self.writer) for lang, levels in written}
        row = merge_captions(without_reuse_note(self.row), self.captions, by, self.scores)
        row.pop("rejected_captions", None)
        return {**row, "rejected_captions": self.rejected} if self.rejected else row


def _describe_row(row: Row) -> str:
    """Return the path or the key of a row, or both, for messages."""
    image, key = row.get("image"), row.get("key")
    names = [] if image is None or is_in_memory(image) else [str(image)]
    names += [f"key {key}"] if key else []
    return ", ".join(names) or "the row"
