"""Markup of chat models around an answer: reasoning, the turns of chat templates, special and location"
" tokens.

Quoted markup is text in the image and is kept: a sign that reads "<think>".
"""

import re
from bisect import bisect_left
from collections.abc import Iterator

from lumina_cli.core.unicap.checks.languages import QUOTED

_QUOTE_MARKS = "\"'`“”„«»「」『』‘’"

# Reasoning, in the tags of DeepSeek, Qwen, GLM, Magistral, Kimi, Seed, Command-A, Sky-T1, MedGemma.
_THOUGHTS = (
    r"think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratch_?pad|inner_?monologue"
    r"|internal(?:_\w+)?|deliberation|planning|seed:think|cot"
)
_REASONING = re.compile(
    rf"(?P<open><(?:{_THOUGHTS})(?:\s[^<>\n]{{0,80}})?>|\[THINK\]|◁think▷|<unused94>(?:thought)?"
    rf"|<\|channel>thought"
    r"|<\|(?:begin_of_|start_of_|begin_|start_)?(?:think(?:ing)?|thought|reason(?:ing)?)(?:_start"
    r"|_begin)?\|>)"
    rf"|(?P<close></(?:{_THOUGHTS})\s*>|\[/THINK\]|◁/think▷|<unused95>|<channel\|>"
    r"|<\|(?:/|end_of_|end_)(?:think(?:ing)?|thought|reason(?:ing)?)\|>"
    r"|<\|(?:think(?:ing)?|thought|reason(?:ing)?)_end\|>)",
    re.IGNORECASE,
)
# gpt-oss without its special tokens: "analysisThe user wants ...assistantfinalA red car".
_HARMONY_WORDS = re.compile(
    r"\s*(?:analysis|commentary)(?=[A-Z\s]).*?assistant\s*final(?=\W|[A-Z])", re.DOTALL
)
# Ollama's command line prints reasoning between these lines.
_OLLAMA_WORDS = re.compile(
    r"\s*Thinking(?:\.{3}|…)(?:\s.*?(?:^|\s)(?:\.{3}|…)done thinking\.?|[ \t\r]*\n(?!.*done thinking).*)",
    re.DOTALL | re.MULTILINE,
)

# The part of an answer that holds the caption, by preference.
_ANSWER_TAGS = ("answer", "final_answer", "final", "caption", "description", "tags", "conclusion", "response",
                "solution", "output", "result", "text", "content", "prompt")  # fmt: skip
_BOX = re.compile(r"<\|begin_of_box\|>(.+?)(?:<\|end_of_box\|>|$)", re.DOTALL)

_ANSWERS = "assistant|model|bot|ai|chatbot|gpt|gemma|falcon"
_ASKS = "user|human|system|tool|developer|observation|instruction|question|context|environment"
_ROLES = f"(?P<{{name}}>{_ANSWERS}|{_ASKS})"
_TURN = re.compile(
    # <|im_start|>assistant, <|start_header_id|>assistant<|end_header_id|>, <start_of_turn>model
    r"(?:<\|(?:im_start|start_header_id|header_start|start_of_role|start|START_OF_TURN_TOKEN)\|>"
    r"|<start_of_turn>"
    r"|<\|turn>|<extra_id_1>|<SPECIAL_1\d>)\s*(?:<\|)?" + _ROLES.format(name="a") + r"(?:_TOKEN\|>|\b)"
    r"(?:<\|(?:end_header_id|header_end|end_of_role|im_sep|im_middle)\|>)?"
    r"(?:<\|channel\|>(?P<channel>\w+))?(?:<\|message\|>)?"
    # <|assistant|>, <｜Assistant｜>, <|im_assistant|>assistant<|im_middle|>, <|assistant_start|>
    r"|<[|｜](?:hy_|im_)?" + _ROLES.format(name="b") + r"(?:_start|_TOKEN)?[|｜]>:?"
    r"(?:(?:assistant|user|system)?<\|im_middle\|>)?"
    r"|<\|channel\|>(?P<only_channel>\w+)<\|message\|>"
    r"|(?P<inst>\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]|<</?SYS>>|<用户>|<AI>)"
    r"|(?:^|(?<=[|｜]>)|(?<=</s>))[ \t]*\#{0,4}[ \t]*(?:(?:GPT-?\d\w*|Code|Math|Llama\w*|Qwen\w*|ChatGPT"
    r"|AI)[ -]"
    r"(?:Correct )?)?(?P<word>USER|User|System|SYSTEM|Human|HUMAN|Instruction|ASSISTANT|Assistant"
    r"|Response|Chatbot|GPT)"
    r"[ \t]?[:：](?=\s|$)"
    r"|(?P<end><\|(?:im_end|eot_id|eom_id|eo[tmsd]|end|endoftext|end_?of_?\w+|return|call|assistant_end"
    r"|END_OF_TURN_TOKEN|END_RESPONSE|im_user)\|>|<end_of_\w+>|<turn\|>|</s>|<eo[sad]>|<EO[TD]>|\[EOS\]"
    r"|<[|｜]end[▁_]of[▁_]\w+[|｜]>|<\|im_end>|\[e~\[)",
    re.IGNORECASE | re.MULTILINE,
)
_ROLE_LINES = re.compile(rf"^[ \t]*(?P<word>{_ANSWERS}|user|system)[ \t]*$", re.MULTILINE)
_ONE_LINE = re.compile(
    r"\s*(?:(?:USER|Human|User)\s?:.{0,4000}?\b(?:ASSISTANT|Assistant)\s?:|Question\s?:.{0,2000}?\bAnswer\s?:"
    r"|Q\s?:.{0,2000}?\n\s*A\s?:)",
    re.DOTALL,
)

# Boxes and points of grounded captions; their numbers are removed with the tags.
_BOXES = re.compile(
    r"<\|box_start\|>[^<]*<\|box_end\|>|<\|det\|>[^<]*<\|/det\|>|<(box|quad|bbox(?:es)?|poly|seg|coord"
    r"|loc)>[\s\d.,;()\[\]-]*</\1>"
    r"|\s?\[\[\s?\d{1,4}(?:\s?[,; ]\s?\d{1,4}){3,}\s?(?:\]\s?,\s?\[[\d,; ]*)*\]\]"
    r"|\s?\[\s?[01]?\.\d+(?:\s?,\s?[01]?\.\d+){3}\s?\]"
    r"|\s?\(0?\.\d+,\s?0?\.\d+\),\s?\(0?\.\d+,\s?0?\.\d+\)"
    r"|<(?:bin|x|y)_\d+>",
    re.IGNORECASE,
)
_LOCATIONS = re.compile(
    r"(?:\s?<(?:loc_?|seg_?|patch_index_|poly_?|pos_?|coord_?|bbox_?|box_?)\d+>"
    r"|<delimiter_of_multi_objects/>)+",
    re.IGNORECASE,
)
# All other special tokens.
_TOKEN = (
    r"<\|[^|<>\s]{1,48}\|>|<[|｜][^|｜<>\n]{1,48}[|｜]>|<\|/?\w{1,30}>|</?\w{1,30}\|>"
    r"|</?(?:s|pad|unk|mask|bos|eos|cls|sep|sop|eop|eo[acdhm]|bo[acdhm]|image\d*|image_\d+|img|imagehere"
    r"|img_context|video"
    r"|image_soft_token|\w*start_of_image|end_of_image|fake_token_around_image|global-img|row_\d+_col_\d+"
    r"|grounding|phrase|object|ref|od|ocr|caption|detailed_caption|more_detailed_caption|dense_region_caption"
    r"|region_proposal|extra_id_\d+|unused\d+|reserved_\d+|special_\d+|tokens_unused_\d+|image_start"
    r"|image_end"
    r"|vision_start|vision_end|im_start|im_end|start_of_turn|beginning_of_sentence|e_s|sc\d?|answer"
    r"|final_answer|final|response|output|result|description|conclusion|solution|text|content|prompt|tags"
    r"|tool_call|points?(?:\s[^<>\n]*)?)>"
    r"|\[/?(?:BOS|PAD|CLS|SEP|UNK|MASK|IMG|IMG_BREAK|IMG_END|gMASK|SEG|IMAGE|IMAGE_TOKEN|UNUSED_TOKEN_\d+)\]"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|\[/?end(?: of \w+)?\]"
)
_TOKENS = re.compile(rf"(?:{_TOKEN})(?:\s*(?:{_TOKEN}))*", re.IGNORECASE)
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def strip_chat_tokens(text: str) -> str:
    """Return the answer of a chat model without its reasoning, the turns around it, and special tokens."""
    text = _fill_spaces(remove_reasoning(text))
    return remove_tokens(_take_answer(take_turn(text)))


def remove_reasoning(text: str) -> str:
    """Return a text without its blocks of reasoning; an unclosed block extends to the end.

    A closing tag without an opening one ends a block that the prompt of the model opened. A single tag in
    the middle of a sentence is text in the image.
    """
    for words in (_HARMONY_WORDS, _OLLAMA_WORDS):
        if found := words.match(text):
            text = text[found.end() :]
    kept: list[str] = []
    depth = end = 0
    for mark in _reasoning_marks(text):
        if mark["open"]:
            if depth == 0:
                kept.append(text[end : mark.start()])
            depth += 1
            continue
        if depth == 0:
            kept.clear()
        depth, end = max(depth - 1, 0), mark.end()
    return "".join(kept if depth else [*kept, text[end:]])


def _reasoning_marks(text: str) -> Iterator[re.Match]:
    """Yield the tags of reasoning, except a single one in the middle of a sentence."""
    marks = list(unquoted(_REASONING, text))
    last_close = max((mark.start() for mark in marks if mark["close"]), default=-1)
    unopened = not any(mark["open"] for mark in marks)
    if len(marks) > 20:  # not a sentence, and slow to check
        yield from marks
        return
    for mark in marks:
        before = text[max(mark.start() - 500, 0) : mark.start()]
        after = text[mark.end() : mark.end() + 20]
        if mark["open"] and mark.start() > last_close and not _begins_answer(before):
            continue
        if unopened and re.search(r"\w[ \t]+$", before) and re.match(r"[ \t]+[a-z]", after):
            continue
        yield mark


def _begins_answer(before: str) -> bool:
    """Return whether only tokens, a role or reasoning precede the end of a text on its last line."""
    line = _TOKENS.sub("", before.rpartition("\n")[2])
    if not line.strip():
        return True
    ends = [mark.end() for pattern in (_TURN, _REASONING) for mark in pattern.finditer(before)]
    return bool(ends) and not before[max(ends) :].strip()


def take_turn(text: str) -> str:
    """Return the first turn of the model in a text that contains several turns of a chat."""
    if whole := _ONE_LINE.match(text):
        text = text[whole.end() :]
    first_line = text.lstrip().partition("\n")[0]
    patterns = [_TURN, _ROLE_LINES] if _ROLE_LINES.match(first_line) else [_TURN]
    for pattern in patterns:
        turns, role, end = [], "model", 0
        for mark in unquoted(pattern, text):
            turns.append((role, text[end : mark.start()]))
            role, end = _role(mark.groupdict()), mark.end()
        turns.append((role, text[end:]))
        spoken = {
            name: [part for role, part in turns if role == name and _TOKENS.sub("", part).strip()]
            for name in ("model", "end")
        }
        text = next(iter(spoken["model"] or spoken["end"]), "")
    return text


def _role(groups: dict[str, str | None]) -> str:
    """Return whose turn a mark begins: "model", "end" (the turn ended) or "other"."""
    if groups.get("end"):
        return "end"
    if channel := groups.get("channel") or groups.get("only_channel"):
        return "model" if channel.lower() == "final" else "other"
    if instruction := groups.get("inst"):
        return "model" if instruction in ("[/INST]", "<AI>") else "other"
    word = (groups.get("a") or groups.get("b") or groups.get("word") or "").lower()
    return "model" if re.fullmatch(f"{_ANSWERS}|response", word) else "other"


def _take_answer(text: str) -> str:
    """Return the part of a text in tags such as <answer>, or the text itself."""
    box = _BOX.search(text)
    if box and len(box[1]) >= len(text) - len(box.group()):
        return box[1]
    for tag in _ANSWER_TAGS:
        blocks = list(unquoted(re.compile(rf"<{tag}>(.*?)(?:</{tag}>|$)", re.IGNORECASE | re.DOTALL), text))
        if filled := [block[1] for block in blocks if block[1].strip()]:
            return filled[-1]
    return text


def remove_tokens(text: str) -> str:
    """Return a text without location tokens, boxes and special tokens.

    Where a location token joins two words, as in lists of detected objects, a comma separates them.
    """
    text = _replace(_BOXES, text, "")
    located = _replace(_LOCATIONS, text, ", ")
    if located != text:
        text = re.sub(r"\s+;\s*", ", ", located).strip(" ,;")
    return _replace(_TOKENS, text, " ")


def _replace(pattern: re.Pattern, text: str, separator: str) -> str:
    """Remove the unquoted matches; `separator` keeps apart what they joined."""
    parts, end = [], 0
    for mark in unquoted(pattern, text):
        parts.append(text[end : mark.start()])
        end = mark.end()
        before, after = text[max(mark.start() - 1, 0) : mark.start()], text[end : end + 1]
        joined = before.strip(" >\n") and after.strip(" <\n") and after not in ".,;:!?)"
        parts.append(separator if joined else "")
    return "".join([*parts, text[end:]])


def unquoted(pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    """Yield the matches of a pattern that are not inside a quotation within one line."""
    starts: list[int] | None = None
    ends: list[int] = []
    for match in pattern.finditer(text):
        before, after = text[max(match.start() - 1, 0) : match.start()], text[match.end() : match.end() + 1]
        if before and after and before in _QUOTE_MARKS and after in _QUOTE_MARKS:
            continue
        if starts is None:
            quotes = [quote for quote in QUOTED.finditer(text) if "\n" not in quote.group()]
            starts, ends = [quote.start() for quote in quotes], [quote.end() for quote in quotes]
        place = bisect_left(starts, match.start()) - 1
        if place >= 0 and match.end() < ends[place]:
            continue
        yield match


def _fill_spaces(text: str) -> str:
    """Replace the visible spaces of raw tokens ("ĠAĠred", "▁A▁red") and byte tokens (<0x0A>)."""
    if text.count("Ġ") > 1:
        text = text.replace("Ġ", " ").replace("Ċ", "\n")
    if text.count("▁") > 1 and "｜" not in text:
        text = text.replace("▁", " ")
    if "\\n" in text and "\n" not in text and ":\\" not in text:
        text = text.replace("\\n", "\n")  # escaped line breaks
    return _BYTE.sub(lambda byte: chr(int(byte[1], 16)) if int(byte[1], 16) < 128 else "", text)
