"""One batch of pictures described: which questions to ask, answers checked, failed ones asked for again."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.io import InvalidImage
from lumina_cli.core.io.jsonl import get_captions, get_error, get_error_code, is_in_memory
from lumina_cli.core.unicap.checks.rules import Reason, check_caption
from lumina_cli.core.unicap.prompts import (
    DOMAINS,
    LEVELS,
    MAX_TOKENS,
    check_languages,
    check_names,
    hint,
    instruction,
)
from lumina_cli.core.unicap.protocol import Answer, Captioner, Question
from lumina_cli.core.unicap.reuse import taken_of, with_captions, without_note
from lumina_cli.core.unicap.structured import (
    CaptionKind,
    joint_prompt,
    max_answer_tokens,
    parse_captions,
    rewriting,
    schema,
)

Row = dict[str, Any]
DERIVES = ("picture", "text", "once")


@dataclass(frozen=True)
class CaptionRequest:
    """What to write about each picture.

    `derive` says from what: "picture" asks for every caption of the picture; "text" for the detailed one, and
    the others from its words; "once" for all in one answer. A row's own "domain" stands in for "auto".
    With `keep` a row's own captions stay, and only what it lacks is asked for. `engine` is what rows name as
    the writer of their captions, under "captioned_by"; without it they name none.
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
    def pairs(self) -> list[CaptionKind]:
        """Every (language, level) that is asked for."""
        return list(itertools.product(self.langs, self.levels))

    def wanted(self, row: Row) -> list[CaptionKind]:
        """Return the (language, level) pairs to write for a row: not those taken over from an earlier run."""
        if not self.keep:
            taken = taken_of(row)
            return [pair for pair in self.pairs if pair[1] not in taken.get(pair[0], ())]
        own = get_captions(row)
        return [pair for pair in self.pairs if not own.get(pair[0], {}).get(pair[1], "").strip()]

    def is_in_vain(self, finished: Row) -> bool:
        """Whether a row as it comes out has none of the captions asked for: each was rejected."""
        rejected = finished.get("rejected_captions") or ()
        failed = {(each.get("lang"), each.get("level")) for each in rejected if isinstance(each, dict)}
        return failed.issuperset(self.pairs)

    def suits(self, captioner: Captioner) -> None:
        """Raise UsageError where an engine cannot do this job."""
        known = captioner.languages or self.langs
        foreign = [lang for lang in self.langs if lang not in known]
        if foreign:
            raise UsageError(f"this model writes {', '.join(known)}, not {', '.join(foreign)}")
        if self.derive == "text" and not captioner.reads_text:
            raise UsageError("this model answers questions about pictures only; leave --derive text out")
        if self.derive == "once" and not captioner.structured:
            raise UsageError("this model cannot write all captions in one answer; leave --derive once out")


@dataclass
class CaptionItem:
    """A row on its way: its place in the stream, its picture, and what was written about it.

    `digest` names the picture's pixels; seeds are drawn from it, so that a picture gets the same captions
    wherever it lies. `counts` holds questions asked and tokens written. `error` is why nothing can be written
    about it, and `code` that in one word.
    """

    index: int
    row: Row
    picture: Image.Image | None = None
    digest: bytes = b""
    error: str | None = None
    code: str | None = None
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    features: Any = None

    def open(self, open_image: Callable[[Row], Image.Image]) -> None:
        """Open the picture, and check what is already written about it; LuminaError where that fails.

        A row that an earlier verb could do nothing with fails for its own reason.
        """
        if error := get_error(self.row):
            raise InvalidImage(error, get_error_code(self.row))
        try:
            get_captions(self.row, _named(self.row))
        except LuminaError as error:
            raise InvalidImage(str(error), "captions") from error
        self.picture = open_image(self.row)
        size = "x".join(map(str, self.picture.size)).encode()
        self.digest = hashlib.blake2b(size + self.picture.tobytes(), digest_size=16).digest()

    def failed_row(self) -> Row:
        """Return the row with its "error", and the "code" of that; what an earlier verb said of it stays."""
        row = {**without_note(self.row), "error": self.error}
        return row | {"code": self.code} if self.code and not get_error(self.row) else row

    def finished_row(self, engine: str | None = None) -> Row:
        """Merge new captions, by `engine`, over the row's own; one that failed leaves an older one alone."""
        by = {lang: dict.fromkeys(levels, engine) for lang, levels in self.captions.items()} if engine else {}
        row = with_captions(without_note(self.row), self.captions, by, self.scores)
        row.pop("rejected_captions", None)
        return {**row, "rejected_captions": self.rejected} if self.rejected else row


def _named(row: Row) -> str:
    """Return what tells a row from others: its file, its key, or both."""
    image, key = row.get("image"), row.get("key")
    told = [] if image is None or is_in_memory(image) else [str(image)]
    told += [f"key {key}"] if key else []
    return ", ".join(told) or "the row"


@dataclass
class _Task:
    """One caption that is still wanted: of which picture, what to ask, and what was wrong so far."""

    shot: CaptionItem
    lang: str
    level: str
    ask: str
    sees: bool = True
    text: str = ""
    reason: Reason | None = None


def caption_batch(
    shots: Sequence[CaptionItem], captioner: Captioner, job: CaptionRequest, scorer: Any = None
) -> int:
    """Write captions about each shot, all questions of a round in one call; return how many calls it took.

    A caption that fails its checks is asked for again up to `job.retries` times, each with another seed, then
    put into `rejected` with the reason.
    """
    wanted = [(shot, pairs) for shot in shots if (pairs := job.wanted(shot.row))]
    if not wanted:
        return 0
    if job.derive == "text":
        return _from_text(wanted, captioner, job, scorer)
    if job.derive == "once":
        return _at_once([(shot, pairs, None) for shot, pairs in wanted], captioner, job, scorer)
    tasks = [_of_picture(shot, *pair, captioner, job) for shot, pairs in wanted for pair in pairs]
    return _settle(tasks, captioner, job, scorer)


def _from_text(
    wanted: Sequence[tuple[CaptionItem, list[CaptionKind]]],
    captioner: Captioner,
    job: CaptionRequest,
    scorer: Any,
) -> int:
    """Ask for the detailed caption in the first language, then for the others from its words.

    Where that one is not wanted and the row has a detailed caption, that is the source.
    """
    first = (job.langs[0], "detailed")
    sources = {s.index: None if first in pairs else _detailed(s, job.langs) for s, pairs in wanted}
    lacking = [(shot, pairs) for shot, pairs in wanted if not sources[shot.index]]
    calls = _settle([_of_picture(s, *first, captioner, job) for s, _ in lacking], captioner, job, scorer)
    for shot, pairs in lacking:
        sources[shot.index] = shot.captions.get(first[0], {}).get("detailed")
        if first not in pairs:  # asked for as the source only
            shot.captions.pop(first[0], None)
            shot.scores.pop(first[0], None)
            shot.rejected.clear()
    rest = [(shot, [pair for pair in pairs if pair != first], sources[shot.index]) for shot, pairs in wanted]
    for shot, pairs, source in rest:
        if not source:
            reason = Reason("no source", "no detailed caption to write it from")
            shot.rejected += [_rejected(lang, level, reason, "") for lang, level in pairs]
    whole = [one for one in rest if one[2]]
    many = [one for one in whole if len(one[1]) > 1] if captioner.structured == "guided" else []
    if many:
        calls += _at_once([(shot, pairs, source) for shot, pairs, source in many], captioner, job, scorer)
    tasks = [
        _Task(shot, lang, level, rewriting(source, level, lang), sees=False)
        for shot, pairs, source in whole
        if not many or len(pairs) < 2
        for lang, level in pairs
    ]
    return calls + (_settle(tasks, captioner, job, scorer) if tasks else 0)


def _detailed(shot: CaptionItem, langs: Sequence[str]) -> str | None:
    captions = get_captions(shot.row)
    ordered = [*langs, *captions]
    return next((text for lang in ordered if (text := captions.get(lang, {}).get("detailed"))), None)


def _at_once(wanted: list[tuple], captioner: Captioner, job: CaptionRequest, scorer: Any) -> int:
    """Ask for all of several captions in one answer each; those that fail are asked for one by one."""
    questions = []
    for shot, pairs, text in wanted:
        ask = joint_prompt(pairs, _domain(shot, captioner, job), text)
        seed, form = _seed(job.seed, shot, "", "", 0), schema(pairs)
        picture = None if text else shot.picture
        questions.append(Question(ask, "", "", seed, max_answer_tokens(pairs), picture, 0, form))
    answers = captioner.answer(questions) if questions else []
    tasks = []
    for (shot, pairs, text), answer in zip(wanted, answers, strict=True):
        shot.counts.update(questions=1, tokens=answer.tokens)
        found = parse_captions(answer.text, pairs)
        for lang, level in pairs:
            ask = rewriting(text, level, lang) if text else _instruction(shot, lang, level, captioner, job)
            task = _Task(shot, lang, level, ask, sees=text is None)
            task.text, task.reason = (
                " ".join(found.get((lang, level), "").split()),
                Reason("form", "not in the JSON answer"),
            )
            if answer.error:
                task.reason = Reason("endpoint", answer.error)
            elif (lang, level) in found:
                task.reason = check_caption(task.text, level, lang, job.langs)
            tasks.append(task)
    return bool(questions) + _settle(tasks, captioner, job, scorer, asked=True)


def _of_picture(shot: CaptionItem, lang: str, level: str, captioner: Captioner, job: CaptionRequest) -> _Task:
    return _Task(shot, lang, level, _instruction(shot, lang, level, captioner, job))


def _instruction(shot: CaptionItem, lang: str, level: str, captioner: Captioner, job: CaptionRequest) -> str:
    return instruction(level, lang, _domain(shot, captioner, job))


def _domain(shot: CaptionItem, captioner: Captioner, job: CaptionRequest) -> str:
    own = shot.row.get("domain") if job.domain == "auto" else None
    return captioner.domain or (own if isinstance(own, str) and own in DOMAINS else job.domain)


def _settle(
    tasks: list[_Task], captioner: Captioner, job: CaptionRequest, scorer: Any, asked: bool = False
) -> int:
    """Ask until each task has a caption or no retry is left; with `asked` their first answers are there."""
    calls = 0
    for attempt in range(job.retries + 1):
        if attempt or not asked:
            failed = [task for task in tasks if task.reason or not attempt]
            if not failed:
                break
            answers = captioner.answer([_question(task, attempt, captioner, job) for task in failed])
            calls += 1
            for task, answer in zip(failed, answers, strict=True):
                _take(task, answer, job)
        else:
            failed = tasks
        if scorer is not None:
            scorer.judge([task for task in failed if task.reason is None])
    for task in tasks:
        if task.reason is None:
            task.shot.captions.setdefault(task.lang, {})[task.level] = task.text
        else:
            task.shot.rejected.append(_rejected(task.lang, task.level, task.reason, task.text))
    return calls


def _question(task: _Task, attempt: int, captioner: Captioner, job: CaptionRequest) -> Question:
    more = hint(task.reason.code, task.lang) if task.reason and captioner.heeds_hints else ""
    seed = _seed(job.seed, task.shot, task.lang, task.level, attempt)
    picture = task.shot.picture if task.sees else None
    return Question(task.ask + more, task.level, task.lang, seed, MAX_TOKENS[task.level], picture, attempt)


def _take(task: _Task, answer: Answer, job: CaptionRequest) -> None:
    task.shot.counts.update(questions=1, tokens=answer.tokens)
    task.text = " ".join(answer.text.split())
    if answer.error:
        task.reason = Reason("endpoint", answer.error)
        return
    task.reason = check_caption(task.text, task.level, task.lang, job.langs, answer.finished)


def _rejected(lang: str, level: str, reason: Reason, text: str) -> dict:
    return {"lang": lang, "level": level, "code": reason.code, "reason": str(reason), "text": text}


def _seed(seed: int, shot: CaptionItem, lang: str, level: str, attempt: int) -> int:
    key = f"{seed}/{shot.digest.hex()}/{lang}/{level}/{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest())
