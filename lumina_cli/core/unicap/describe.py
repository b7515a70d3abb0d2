"""One batch of pictures described: which questions to ask, answers checked, failed ones asked for again."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from lumina_cli.core.errors import UsageError
from lumina_cli.core.formats.rows import captions_of
from lumina_cli.core.unicap.answers import Answer, Captioner, Question
from lumina_cli.core.unicap.checks import Reason, check
from lumina_cli.core.unicap.forms import Pair, rewriting, room, schema, take_apart, together
from lumina_cli.core.unicap.prompts import (
    DOMAINS,
    LEVELS,
    MAX_TOKENS,
    check_languages,
    check_names,
    hint,
    instruction,
)

Row = dict[str, Any]
DERIVES = ("picture", "text", "once")


@dataclass(frozen=True)
class Job:
    """What to write about each picture.

    `derive` says from what: "picture" asks for every caption of the picture; "text" for the detailed one, and
    the others from its words; "once" for all in one answer. A row's own "domain" stands in for "auto".
    """

    levels: tuple[str, ...] = LEVELS
    langs: tuple[str, ...] = ("en",)
    domain: str = "auto"
    derive: str = "picture"
    seed: int = 0
    retries: int = 2
    score: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "levels", check_names("level", list(self.levels), LEVELS))
        object.__setattr__(self, "langs", check_languages(list(self.langs)))
        check_names("domain", [self.domain], DOMAINS)
        check_names("derive", [self.derive], DERIVES)

    @property
    def pairs(self) -> list[Pair]:
        """Every (language, level) that is asked for."""
        return list(itertools.product(self.langs, self.levels))

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
class Shot:
    """A row on its way: its place in the stream, its picture, and what was written about it.

    `digest` names the picture's pixels; seeds are drawn from it, so that a picture gets the same captions
    wherever it lies. `counts` holds questions asked and tokens written.
    """

    index: int
    row: Row
    picture: Image.Image | None = None
    digest: bytes = b""
    error: str | None = None
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    features: Any = None

    def open(self, open_image: Callable[[Row], Image.Image]) -> None:
        """Open the picture, and check what is already written about it."""
        captions_of(self.row)
        self.picture = open_image(self.row)
        size = "x".join(map(str, self.picture.size)).encode()
        self.digest = hashlib.blake2b(size + self.picture.tobytes(), digest_size=16).digest()

    def finished_row(self) -> Row:
        """Merge new captions over the row's own; one that failed leaves an older one of its kind alone."""
        row = {**self.row, "captions": _merged(captions_of(self.row), self.captions)}
        row.pop("rejected_captions", None)
        if self.scores:
            row["caption_scores"] = _merged(row.get("caption_scores"), self.scores)
        return {**row, "rejected_captions": self.rejected} if self.rejected else row


def _merged(old: Any, new: dict[str, dict]) -> dict[str, dict]:
    merged = {lang: dict(levels) for lang, levels in (old or {}).items() if isinstance(levels, dict)}
    for lang, levels in new.items():
        merged.setdefault(lang, {}).update(levels)
    return merged


@dataclass
class _Task:
    """One caption that is still wanted: of which picture, what to ask, and what was wrong so far."""

    shot: Shot
    lang: str
    level: str
    ask: str
    sees: bool = True
    text: str = ""
    reason: Reason | None = None


def describe(shots: Sequence[Shot], captioner: Captioner, job: Job, scorer: Any = None) -> int:
    """Write captions about each shot, all questions of a round in one call; return how many calls it took.

    A caption that fails its checks is asked for again up to `job.retries` times, each with another seed, then
    put into `rejected` with the reason.
    """
    if not shots:
        return 0
    if job.derive == "text":
        return _from_text(shots, captioner, job, scorer)
    if job.derive == "once":
        return _at_once([(shot, job.pairs, None) for shot in shots], captioner, job, scorer)
    tasks = [_of_picture(shot, lang, level, captioner, job) for shot in shots for lang, level in job.pairs]
    return _settle(tasks, captioner, job, scorer)


def _from_text(shots: Sequence[Shot], captioner: Captioner, job: Job, scorer: Any) -> int:
    """Ask for the detailed caption in the first language, then for the others from its words.

    Where no detailed caption is asked for and the row has one, that is the source.
    """
    first = job.langs[0]
    sources = {} if "detailed" in job.levels else {shot.index: _detailed(shot, job.langs) for shot in shots}
    lacking = [shot for shot in shots if not sources.get(shot.index)]
    calls = _settle(
        [_of_picture(s, first, "detailed", captioner, job) for s in lacking], captioner, job, scorer
    )
    rest = [pair for pair in job.pairs if pair != (first, "detailed")]
    for shot in lacking:
        sources[shot.index] = shot.captions.get(first, {}).get("detailed")
        if "detailed" not in job.levels:  # asked for as the source only
            shot.captions.pop(first, None)
            shot.scores.pop(first, None)
            shot.rejected.clear()
    whole = [shot for shot in shots if sources[shot.index]]
    for shot in shots:
        if not sources[shot.index]:
            reason = Reason("no source", "no detailed caption to write it from")
            shot.rejected += [_rejected(lang, level, reason, "") for lang, level in rest]
    if captioner.structured == "guided" and len(rest) > 1:
        return calls + _at_once([(s, rest, sources[s.index]) for s in whole], captioner, job, scorer)
    tasks = [
        _Task(shot, lang, level, rewriting(sources[shot.index], level, lang), sees=False)
        for shot in whole
        for lang, level in rest
    ]
    return calls + _settle(tasks, captioner, job, scorer)


def _detailed(shot: Shot, langs: Sequence[str]) -> str | None:
    captions = captions_of(shot.row)
    ordered = [*langs, *captions]
    return next((text for lang in ordered if (text := captions.get(lang, {}).get("detailed"))), None)


def _at_once(wanted: list[tuple], captioner: Captioner, job: Job, scorer: Any) -> int:
    """Ask for all of several captions in one answer each; those that fail are asked for one by one."""
    questions = []
    for shot, pairs, text in wanted:
        ask = together(pairs, _domain(shot, captioner, job), text)
        seed, form = _seed(job.seed, shot, "", "", 0), schema(pairs)
        picture = None if text else shot.picture
        questions.append(Question(ask, "", "", seed, room(pairs), picture, 0, form))
    answers = captioner.answer(questions) if questions else []
    tasks = []
    for (shot, pairs, text), answer in zip(wanted, answers, strict=True):
        shot.counts.update(questions=1, tokens=answer.tokens)
        found = take_apart(answer.text, pairs)
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
                task.reason = check(task.text, level, lang, job.langs)
            tasks.append(task)
    return bool(questions) + _settle(tasks, captioner, job, scorer, asked=True)


def _of_picture(shot: Shot, lang: str, level: str, captioner: Captioner, job: Job) -> _Task:
    return _Task(shot, lang, level, _instruction(shot, lang, level, captioner, job))


def _instruction(shot: Shot, lang: str, level: str, captioner: Captioner, job: Job) -> str:
    return instruction(level, lang, _domain(shot, captioner, job))


def _domain(shot: Shot, captioner: Captioner, job: Job) -> str:
    own = shot.row.get("domain") if job.domain == "auto" else None
    return captioner.domain or (own if isinstance(own, str) and own in DOMAINS else job.domain)


def _settle(tasks: list[_Task], captioner: Captioner, job: Job, scorer: Any, asked: bool = False) -> int:
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


def _question(task: _Task, attempt: int, captioner: Captioner, job: Job) -> Question:
    more = hint(task.reason.code, task.lang) if task.reason and captioner.heeds_hints else ""
    seed = _seed(job.seed, task.shot, task.lang, task.level, attempt)
    picture = task.shot.picture if task.sees else None
    return Question(task.ask + more, task.level, task.lang, seed, MAX_TOKENS[task.level], picture, attempt)


def _take(task: _Task, answer: Answer, job: Job) -> None:
    task.shot.counts.update(questions=1, tokens=answer.tokens)
    task.text = " ".join(answer.text.split())
    if answer.error:
        task.reason = Reason("endpoint", answer.error)
        return
    task.reason = check(task.text, task.level, task.lang, job.langs)
    if task.reason is None and not answer.finished:
        task.reason = Reason("cut off", f"cut off at {MAX_TOKENS[task.level]} tokens")


def _rejected(lang: str, level: str, reason: Reason, text: str) -> dict:
    return {"lang": lang, "level": level, "code": reason.code, "reason": str(reason), "text": text}


def _seed(seed: int, shot: Shot, lang: str, level: str, attempt: int) -> int:
    key = f"{seed}/{shot.digest.hex()}/{lang}/{level}/{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest())
