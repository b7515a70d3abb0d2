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
from lumina_cli.core.unicap.prompts import DOMAINS, LEVELS, check_languages, check_names
from lumina_cli.core.unicap.protocol import Captioner
from lumina_cli.core.unicap.reuse import merge_captions, reused_captions, without_reuse_note
from lumina_cli.core.unicap.structured import CaptionType

Row = dict[str, Any]
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
    keep       keep existing captions of a row and request only the missing ones
    engine     name recorded under "captioned_by"; None records nothing

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

    def __post_init__(self):
        object.__setattr__(self, "levels", check_names("level", list(self.levels), LEVELS))
        object.__setattr__(self, "langs", check_languages(list(self.langs)))
        check_names("domain", [self.domain], DOMAINS)
        check_names("derive", [self.derive], DERIVES)

    @property
    def pairs(self) -> list[CaptionType]:
        """All requested (language, level) pairs."""
        return list(itertools.product(self.langs, self.levels))

    def missing_captions(self, row: Row) -> list[CaptionType]:
        """Return the (language, level) pairs that a row still needs."""
        if not self.keep:
            reused = reused_captions(row)
            return [pair for pair in self.pairs if pair[1] not in reused.get(pair[0], ())]
        own = get_captions(row)
        return [pair for pair in self.pairs if not own.get(pair[0], {}).get(pair[1], "").strip()]

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

    def finished_row(self, engine: str | None = None) -> Row:
        """Return the row with its new captions; a rejected caption does not replace an existing one."""
        by = {lang: dict.fromkeys(levels, engine) for lang, levels in self.captions.items()} if engine else {}
        row = merge_captions(without_reuse_note(self.row), self.captions, by, self.scores)
        row.pop("rejected_captions", None)
        return {**row, "rejected_captions": self.rejected} if self.rejected else row


def _describe_row(row: Row) -> str:
    """Return the path or the key of a row, or both, for messages."""
    image, key = row.get("image"), row.get("key")
    names = [] if image is None or is_in_memory(image) else [str(image)]
    names += [f"key {key}"] if key else []
    return ", ".join(names) or "the row"
