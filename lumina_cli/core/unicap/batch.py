"""Captioning of one batch: the questions, the checks of the answers, and the retries.

The retry loop is `ask`; `run.py` contains the run around the batches.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.unicap.checks.rules import Reason, check_caption
from lumina_cli.core.unicap.checks.unwrap import unwrap
from lumina_cli.core.unicap.items import CaptionItem, CaptionRequest
from lumina_cli.core.unicap.prompts import (
    DOMAINS,
    MAX_TOKENS,
    add_prefix,
    hint,
    instruction,
    own_instruction,
)
from lumina_cli.core.unicap.protocol import Answer, Captioner, Question
from lumina_cli.core.unicap.structured import (
    CaptionType,
    joint_prompt,
    max_answer_tokens,
    parse_captions,
    rewriting,
    schema,
)

Pending = list[tuple[CaptionItem, list[CaptionType]]]  # items with the captions that they need
JointQuestion = tuple[CaptionItem, list[CaptionType], str | None]  # and the source text, None: the image


@dataclass
class CaptionTask:
    """One caption to write.

    ask      the question, and `sees`, whether it shows the image
    text     the latest answer, and `reason`, why it was rejected
    unwrapped  whether markup or polite words around the caption were removed
    """

    item: CaptionItem
    lang: str
    level: str
    ask: str
    sees: bool = True
    text: str = ""
    reason: Reason | None = None
    unwrapped: bool = False


def caption_batch(
    items: Sequence[CaptionItem], captioner: Captioner, request: CaptionRequest, scorer: Any = None
) -> int:
    """Caption a batch of items, with all questions of a round in one call of the engine.

    A caption that fails its checks is requested again with another seed, up to `request.retries` times, and
    then appended to `rejected` with the reason.

    Returns:
        The number of calls of the engine.
    """
    pending = [(item, pairs) for item in items if (pairs := request.missing_captions(item.row))]
    for item in items:
        kept = request.kept_captions(item.row)
        item.counts["kept"] += sum(level in kept.get(lang, {}) for lang, level in request.pairs)
        item.writer = writer_name(request.engine, captioner)
    for item, pairs in pending:
        item.counts["requested"] += len(pairs)
    if not pending:
        return 0
    batch = _Batch(captioner, request, scorer)
    if request.derive == "text":
        calls = batch.derive_from_text(pending)
    elif request.derive == "once":
        calls = batch.ask_jointly([(item, pairs, None) for item, pairs in pending])
    else:
        calls = batch.ask([batch.image_task(item, *pair) for item, pairs in pending for pair in pairs])
    for item, _ in pending if request.prefix else ():
        item.captions = {
            lang: {level: add_prefix(text, request.prefix) for level, text in texts.items()}
            for lang, texts in item.captions.items()
        }
    return calls


@dataclass(frozen=True)
class _Batch:
    """The engine, the request and the scorer of a batch; each method returns its number of calls."""

    captioner: Captioner
    request: CaptionRequest
    scorer: Any

    def derive_from_text(self, pending: Pending) -> int:
        """Request the detailed caption in the first language, then derive the others from it.

        If that caption is not requested and the row has a detailed one, the existing one is the source.
        """
        first = (self.request.langs[0], "detailed")
        sources = {
            item.index: None if first in pairs else _existing_detailed(item, self.request.langs)
            for item, pairs in pending
        }
        without_source = [(item, pairs) for item, pairs in pending if not sources[item.index]]
        calls = self.ask([self.image_task(item, *first) for item, _ in without_source])
        for item, pairs in without_source:
            sources[item.index] = item.captions.get(first[0], {}).get("detailed")
            if first not in pairs:  # requested only as the source
                item.captions.pop(first[0], None)
                item.scores.pop(first[0], None)
                item.rejected.clear()
        rest = [
            (item, [pair for pair in pairs if pair != first], sources[item.index]) for item, pairs in pending
        ]
        for item, pairs, source in rest:
            if not source:
                reason = Reason("no source", "no detailed caption to write it from")
                item.rejected += [_rejected(lang, level, reason, "") for lang, level in pairs]
        with_source = [one for one in rest if one[2]]
        # only an engine that enforces a schema writes all captions of a text reliably in one answer
        guided = self.captioner.structured == "guided"
        joint = [one for one in with_source if len(one[1]) > 1] if guided else []
        if joint:
            calls += self.ask_jointly(joint)
        tasks = [
            CaptionTask(item, lang, level, rewriting(source, level, lang), sees=False)
            for item, pairs, source in with_source
            if not joint or len(pairs) < 2
            for lang, level in pairs
        ]
        return calls + (self.ask(tasks) if tasks else 0)

    def ask_jointly(self, pending: list[JointQuestion]) -> int:
        """Request all captions of an image in one answer; retry the failed ones individually."""
        questions = []
        for item, pairs, text in pending:
            ask = joint_prompt(pairs, self.domain(item), text)
            seed, form = _seed(self.request.seed, item, "", "", 0), schema(pairs)
            image = None if text else item.image
            questions.append(Question(ask, "", "", seed, max_answer_tokens(pairs), image, 0, form))
        answers = self.captioner.answer(questions) if questions else []
        tasks = []
        for (item, pairs, text), answer in zip(pending, answers, strict=True):
            item.counts.update(questions=1, tokens=answer.tokens)
            found = parse_captions(answer.text, pairs)
            tasks += [self.joint_task(item, pair, text, answer, found.get(pair)) for pair in pairs]
        return bool(questions) + self.ask(tasks, answered=True)

    def joint_task(
        self, item: CaptionItem, pair: CaptionType, source: str | None, answer: Answer, found: str | None
    ) -> CaptionTask:
        """Return the task of one caption of a joint answer, with the caption `found` there."""
        lang, level = pair
        ask = rewriting(source, level, lang) if source else self.instruction(item, lang, level)
        task = CaptionTask(item, lang, level, ask, sees=source is None)
        if answer.error:
            task.reason = Reason("endpoint", answer.error)
        elif found is None:
            task.reason = Reason("form", "not in the JSON answer")
        else:
            self.check_text(task, found)
        return task

    def image_task(self, item: CaptionItem, lang: str, level: str) -> CaptionTask:
        """Return the task of one caption that is written from the image."""
        return CaptionTask(item, lang, level, self.instruction(item, lang, level))

    def instruction(self, item: CaptionItem, lang: str, level: str) -> str:
        if self.request.instruction:
            return own_instruction(self.request.instruction, level, lang)
        return instruction(level, lang, self.domain(item))

    def domain(self, item: CaptionItem) -> str:
        """Return the domain of an image: that of the engine, or of the row, or of the request."""
        own = item.row.get("domain") if self.request.domain == "auto" else None
        known = isinstance(own, str) and own in DOMAINS
        return self.captioner.domain or (own if known else self.request.domain)

    def ask(self, tasks: list[CaptionTask], answered: bool = False) -> int:
        """Ask until each task has a caption or no retry is left; `answered` tasks have a first answer."""
        calls = 0
        for attempt in range(self.request.retries + 1):
            if attempt or not answered:
                failed = [task for task in tasks if task.reason or not attempt]
                if not failed:
                    break
                answers = self.captioner.answer([self.question(task, attempt) for task in failed])
                calls += 1
                for task, answer in zip(failed, answers, strict=True):
                    task.item.counts["retries"] += attempt > 0
                    self.check_answer(task, answer)
            else:
                failed = tasks
            if self.scorer is not None:
                self.scorer.judge([task for task in failed if task.reason is None])
        for task in tasks:
            if task.reason is None:
                task.item.captions.setdefault(task.lang, {})[task.level] = task.text
                task.item.counts["unwrapped"] += task.unwrapped
            else:
                task.item.rejected.append(_rejected(task.lang, task.level, task.reason, task.text))
        return calls

    def question(self, task: CaptionTask, attempt: int) -> Question:
        """Return the question of an attempt; a retry mentions what was wrong, if the engine supports that."""
        more = hint(task.reason.code, task.lang) if task.reason and self.captioner.heeds_hints else ""
        seed = _seed(self.request.seed, task.item, task.lang, task.level, attempt)
        image = task.item.image if task.sees else None
        return Question(task.ask + more, task.level, task.lang, seed, MAX_TOKENS[task.level], image, attempt)

    def check_answer(self, task: CaptionTask, answer: Answer) -> None:
        task.item.counts.update(questions=1, tokens=answer.tokens)
        if answer.error:
            task.text, task.reason = " ".join(answer.text.split()), Reason("endpoint", answer.error)
            return
        self.check_text(task, answer.text, answer.finished)

    def check_text(self, task: CaptionTask, answer: str, finished: bool | None = None) -> None:
        """Set the text of a task to the caption in an answer, and the reason if it is rejected."""
        plain = " ".join(answer.split())
        task.text = unwrap(answer, task.level, task.lang)
        task.unwrapped = task.text != plain
        if plain and not task.text:
            task.text, task.reason = plain[:2000], Reason("empty", "reasoning or markup without a caption")
            return
        own = task.sees and self.request.instruction is not None
        task.reason = check_caption(task.text, task.level, task.lang, self.request.langs, finished, own)


def writer_name(engine: str | None, captioner: Captioner) -> str | None:
    """Return the name for "captioned_by": the engine with its model, which it may have found itself."""
    found = getattr(captioner, "found", None)
    return f"{engine}:{found}" if engine and found and ":" not in engine else engine


def _existing_detailed(item: CaptionItem, langs: Sequence[str]) -> str | None:
    captions = get_captions(item.row)
    ordered = [*langs, *captions]
    return next((text for lang in ordered if (text := captions.get(lang, {}).get("detailed"))), None)


def _rejected(lang: str, level: str, reason: Reason, text: str) -> dict:
    return {"lang": lang, "level": level, "code": reason.code, "reason": str(reason), "text": text}


def _seed(seed: int, item: CaptionItem, lang: str, level: str, attempt: int) -> int:
    key = f"{seed}/{item.digest.hex()}/{lang}/{level}/{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest())
