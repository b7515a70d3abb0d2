"""Texts that are not captions: messages of failed programs, placeholders, and images that were not described.

They count at the start of an answer. A caption that mentions one is valid: the words are quoted, or others
follow ("CUDA out of memory in red letters on a laptop screen").
"""

import re

# What ends a message; a caption continues instead: "Out of memory in white letters".
_END = (
    r"(?:,\s*(?:please|try|retry|check)|\s*(?:$"
    r"|[.!:;…\[{|\n]|\(\w+[=:]|\(\d+\)|\((?:core|tried|code|status|most)|[-–—]\s*\d|\b(?:error|exception)\s*(?:$|[.:!])"
    r"|\b(?:tried to|due to|because|while|during|after|at line|with (?:code|status|error)|on (?:cuda|device"
    r"|gpu)"
    r"|please|try again|occurred|when)\b))"
)
# Names of HTTP statuses that follow their number.
_STATUS = (
    r"(?:bad request|unauthorized|payment required|forbidden|not found|method not allowed|not acceptable"
    r"|proxy authentication required|request time-?out|conflict|gone|length required|precondition failed"
    r"|(?:payload|content|request entity|request-uri|uri) too (?:large|long)|unsupported media type"
    r"|range not satisfiable|expectation failed|i'm a teapot|misdirected request"
    r"|unprocessable (?:entity|content)|locked|failed dependency|too early|upgrade required"
    r"|precondition required|too many requests|request header fields too large"
    r"|unavailable for legal reasons|client closed request|internal server error|not implemented"
    r"|bad gateway|service (?:temporarily )?unavailable|gateway time-?out|http version not supported"
    r"|insufficient storage|loop detected|network authentication required)"
)
_AFTER = r"(?:\s*$|[ .!:;(])"

_MACHINE = (
    rf"(?:error:? ?)?(?:torch\.)?(?:(?:cuda|gpu|hip|mps|xpu|tpu|device|system|server"
    rf"|host)\b[ :]*(?:backend |error:? )?)?"
    rf"(?:ran )?out of memory{_END}",
    rf"(?:cuda|cudnn|cublas|nccl|hip|rocm|mps|triton|vllm|onnx\w*) (?:runtime )?(?:error|kernel errors?"
    rf"|failure){_END}",
    r"not enough (?:gpu |system )?memory\b(?: to|$|[.:])|max retries exceeded with|quota exceeded(?: for|$"
    r"|[.:])",
    r"(?:error|fatal|critical)\s+\d{4}-\d\d|\[?\d{4}-\d\d-\d\d[^\n]{0,24}?\]?\s*(?:error|fatal|critical"
    r"|exception)\b",
    r"(?-i:[A-Z]{3,}_[A-Z_]{3,})\s*(?:[:(]|$)",
    r"traceback \(most recent call last\)",
    r"(?:[a-z_]\w*\.)*[A-Za-z]\w*(?:Error|Exception|Timeout|Interrupt|Warning)\b\s*(?:$|[:(\[]\s*\S)",
    r"\[?(?:fatal|internal|api|model|inference|request|unexpected|runtime|http|parse|processing)? ?(?:error"
    r"|exception|failure)\]?"
    r"(?: (?:code|message))?\s*(?:[:=]|\]|-\s)",
    rf"(?:http(?:/\d(?:\.\d)?)?(?: error)?(?: status)?(?: code)?|error|status(?: code)?)[ :]{{0,2}}[45]\d\d"
    rf"(?:[ :.,(-]+(?:client error:? ?|server error:? ?)?{_STATUS}\)?)?{_END}",
    rf"[45]\d\d (?:client|server) error\b(?:: ?{_STATUS})?{_AFTER}",
    # HTTP/1.1 301 Moved Permanently: the line of a protocol, with any status
    r"http/\d(?:\.\d)? [1-5]\d\d\b",
    rf"[45]\d\d[ :.-]+{_STATUS}{_END}",
    rf"(?:[45]\d\d[ :.-]+)?(?:internal server error|bad gateway|service (?:temporarily )?unavailable"
    rf"|gateway time-?out"
    rf"|too many requests|unauthorized|forbidden|bad request|payload too large|request entity too large"
    rf"|unprocessable (?:entity|content)){_END}",
    rf"[45]\d\d[ :.-]+not found{_END}",
    rf"(?:rate|request|usage|token|quota)s? (?:limit )?(?:has been |was )?(?:exceeded|reached){_END}",
    r"you(?:'ve| have)? exceeded your (?:current )?(?:quota|rate)|insufficient[_ ]quota\b",
    rf"(?:the )?(?:request|connection|read|operation|response|inference|api call|query|session)(?: has"
    rf"| was)? ?"
    rf"(?:timed? ?-?out|aborted|refused|reset(?: by peer)?|closed|failed|cancell?ed|terminated|error"
    rf"|interrupted){_END}",
    r"upstream (?:connect|request|prematurely)|no healthy upstream",
    rf"(?:the )?(?:stream|server|engine|model|service|worker|backend)(?: \S+)? (?:is |was "
    rf"|has )?(?:currently |temporarily )?"
    rf"(?:overloaded|busy|loading|unavailable|disconnected|closed|interrupted|not (?:available|loaded|ready"
    rf"|found)){_END}",
    rf"(?:this model's )?maximum context length\b|(?:context|prompt|input)(?: length| window| size)? (?:is )?"
    rf"(?:exceeded|overflow|too long|exceeds)\b|(?:invalid|incorrect|missing|expired) (?:api[ _]key|token"
    rf"|credentials"
    rf"|authentication|base64|image (?:data|url|format|input)){_END}",
    r"(?:an?|some|unknown|unexpected)? ?(?:unexpected |unknown |internal |server )?(?:error"
    r"|exception) (?:has )?(?:occurred|while|generating"
    r"|processing|loading|parsing|reading)\b",
    rf"(?:(?:oops|sorry|whoops|uh oh)[!,.]? ?)?something went wrong{_END}|please try again(?: later)?[.!]?$",
    # messages of Python without the name of their exception
    r"(?:list|tuple|string|pop|array|bytearray|range object)(?: assignment)? index out of range[.!]?$"
    r"|index -?\d+ is out of bounds\b|(?:integer )?(?:division|modulo) (?:or modulo )?by zero[.!]?$"
    r"|(?:invalid literal for|not enough values to unpack|too many values to unpack|unsupported operand"
    r"|cannot unpack|can only concatenate|maximum recursion depth exceeded|could not convert string to"
    r"|invalid syntax \(|expecting value: line \d|extra data: line \d|no module named '"
    r"|name '\w+' is not defined|cannot import name '"
    r"|\w+\(\) (?:got an unexpected|missing \d+ required|takes)"
    r"|dictionary changed size during|string indices must be|must be real number, not|local variable '\w+'"
    r"|mat1 and mat2 shapes|the size of tensor \w+ \(|cannot identify image file|object of type '\w+' has no"
    r"|argument of type '\w+' is not|list indices must be|'utf-?8' codec can't"
    r"|\[errno -?\d+\]|\[winerror \d+\])",
    # messages of a shell and of a system
    r"(?:(?:/?[\w./-]*sh|zsh|bash|sudo|env|python3?|curl|wget|nvcc)(?:: (?:line )?\d+)?: "
    r"|curl: \(\d+\))(?=\S)"
    r"(?:[^\n]*(?:: |\d )(?:command not found|no such file or directory|permission denied|not found|killed)"
    r"|(?:can't open file|could not resolve|failed to connect|the requested url|connection ))"
    r"|curl: \(\d+\)|[\w./-]+: (?:command not found|no such file or directory|permission denied)[.!]?$"
    r"|command not found(?:: \S+)?[.!]?$"
    r"|(?:no such file or directory|permission denied|no space left on device"
    r"|broken pipe|connection reset by peer|connection refused|operation not permitted"
    r"|killed|aborted|terminated"
    r"|oom-?killed|out of disk space|disk quota exceeded|bad file descriptor|too many open files"
    r"|illegal instruction|floating point exception|name or service not known"
    r"|temporary failure in name resolution|network is unreachable|no route to host|host is down"
    r"|device or resource busy|input/output error)(?: \(core dumped\))?(?:[.!:]?$|: ['\"/.])"
    r"|killed process \d+|process (?:\d+ )?(?:killed|exited|finished|terminated) with"
    r"|exit(?:ed with)? (?:code|status) \d"
    r"|command (?:terminated|failed|exited) (?:by|with) ",
    rf"segmentation fault{_END}|core dumped|assertion failed\b|stack overflow{_END}|kernel panic\b{_END}"
    rf"|bus error{_END}",
    r"module '\w+' has no attribute|'\w+' object (?:has no|is not)|expected all tensors to be|<!doctype"
    r"|<html\b",
    rf"(?:failed|unable|not able|cannot|can't|could not|couldn't)(?: to)? (?:generate|process|load|open"
    rf"|read|decode|fetch"
    rf"|download|retrieve|allocate|connect to|parse|infer)\b(?:,? \w+){{0,6}}{_END}",
)
_PLACEHOLDER = (
    r"(?:none|null|nil|nan|n/?a|undefined|unknown|todo|tbd|string|error|failed|empty|blank|untitled|false"
    r"|true|-+"
    r"|\[object object\]|no (?:caption|description|answer|response|output|result|content|text|image"
    r"|data)(?: \w+)?"
    r"|not (?:available|applicable|provided|found)|(?:description|caption|image|content) (?:not "
    r"|un)(?:available|found)"
    r"|[\[<({]?(?:insert|your|add|image|the)? ?(?:\w+ )?"
    r"(?:caption|description|text)(?: goes)?(?: here)?[\])>}]?"
    r"|[\[<({][\w .]{1,40}[\])>}]|lorem ipsum\b.*|\.{2,}|…+)[.!]?$"
)

_IMAGE = (
    r"(?:(?:the|this|your|provided|given|uploaded|attached|input) )*(?:image(?: quality| resolution)?|picture"
    r"|photo(?:graph)?|file|frame|scan|screenshot)"
)
_DIM = (
    r"(?:blurry|blurred|blurring|dark|dim|small|tiny|unclear|pixelated|pixellated|low[- ](?:res\w*|quality)"
    r"|low in \w+|noisy|grainy"
    r"|distorted|overexposed|underexposed|out of focus|bright|obscured|abstract|compressed|faint|hazy|vague"
    r"|ambiguous|far away|low|poor|bad)"
)
_DOES = (
    r"(?:be )?(?:describe|caption|identify|see|tell|recogni[sz]e|discern|determine|interpret|analy[sz]e"
    r"|provide|give|make (?:any)?"
    r"|distinguish|view|understand|say|know|write|generate|process)\w*"
)
_UNDESCRIBED = (
    rf"{_IMAGE}(?: \w+)?,? (?:is|are|was|appears?|seems?"
    rf"|looks?)(?: to be)?(?: \w+){{0,3}}? too {_DIM}[^.!?\n]{{0,40}}? to {_DOES}",
    rf"{_IMAGE}(?: \w+)? (?:is|was|appears?|seems?|looks?)(?: to be)?(?: \w+){{0,2}}? too {_DIM}{_END}",
    rf"(?:(?:it(?:'s| is)|sorry|unfortunately),? )*(?:far |way |simply |just |much )*too {_DIM}(?:,? (?:and"
    rf"|or) {_DIM})?"
    rf",? (?:for me )?to {_DOES}",
    rf"(?:unfortunately,? |sorry,? |due to [^,\n]{{0,60}}, ?)*(?:it(?:'s| is) )?(?:very |quite |too "
    rf"|extremely )?"
    rf"(?:difficult|hard|impossible|not possible|challenging|unclear)(?: for me)? to "
    rf"(?:accurately |clearly |properly |exactly )?{_DOES}",
    rf"{_IMAGE}(?: \w+)? (?:is|was|appears?|seems?"
    rf"|looks?)(?: to be)?(?: \w+){{0,3}}? {_DIM}\b[^.!?\n]{{0,40}}?"
    rf"(?:hard|difficult|impossible|unable|not possible) to {_DOES}",
    r"i (?:can ?not|can't|could ?n[o']t) (?:tell (?:what|who|if|whether|anything|from)|make out|determine"
    r"|discern)\b",
    r"(?:there (?:is|are) )?no (?:visible|discernible|recogni[sz]able|identifiable) (?:content|objects?"
    r"|details?|subject)s?\b"
    r"[^.\n]{0,30}\b(?:in|of) (?:the|this) (?:image|picture|photo)",
    rf"(?:unable|not able|failed|impossible)(?: to)? {_DOES}\b[^,\n]{{0,60}}{_END}",
    r"(?:cannot|can't|can not|could not|couldn't) (?:be )?(?:describe|caption|identif|determin|interpret"
    r"|analy[sz])\w*",
    rf"{_IMAGE} (?:could ?n[o']t|could not|can ?not|can't|failed to|did not|didn't|does not|doesn't|was not"
    rf"|wasn't|is not|isn't)"
    rf" (?:be )?(?:load|open|display|process|read|view|found|available|accessible|render|describ|exist"
    rf"|identif|interpret|clear"
    rf" enough|clearly visible|decod|retriev|fetch|provided|attached)\w*",
    rf"{_IMAGE} (?:does not|doesn't) (?:contain|show|have|provide) (?:any |enough |an? )?(?:recogni[sz]able"
    rf"|discernible"
    rf"|identifiable|clear|information|content|details?|visible content)",
    rf"{_IMAGE}?(?: file)? ?\b(?:is|appears|seems|looks)(?: to be)?(?: completely| entirely| just| totally"
    rf"| either| an?)*"
    rf" (?:blank|empty|corrupt(?:ed)?|damaged|missing|unavailable|not available|invalid|unreadable"
    rf"|inaccessible|unsupported)"
    rf"(?: (?:image|picture|file))?\b(?:{_END}| (?:or|and) )",
    r"(?:there (?:is|'s|are) )?(?:nothing|not (?:enough|sufficient)|insufficient|no (?:discernible"
    r"|recogni[sz]able|identifiable"
    r"|visible (?:content|detail|object)s?)|no (?:clear )?(?:information|details?"
    r"|context))\b[^.\n]{0,60}\b(?:to (?:describe|caption"
    r"|identify|see|determine|provide|go on)|(?:is|are) (?:visible|present|available|discernible"
    r"|recogni[sz]able)$)",
    rf"(?:no|missing) (?:image|picture|photo|caption|description|alt text|input)s? ?(?:was |is |were |are "
    rf"|has been )?"
    rf"(?:available|found|provided|given|generated|detected|uploaded|supplied|returned|yet|attached"
    rf"|received)?{_END}",
    rf"image (?:not (?:found|available|provided)|unavailable|missing|could not be \w+|failed to load"
    rf"|load failed){_END}",
    r"(?:(?:this|the|your) (?:content|image|request|prompt|input|picture|message|response"
    r"|output)\b[^.\n]{0,60}?|content )\b"
    r"(?:violat\w+|(?:was|been|is) (?:flagged|filtered|rejected|moderated)|against (?:our|the) (?:policy"
    r"|policies|guidelines|rules)"
    r"|blocked (?:by|due to) (?:the |our |a )?(?:safety|content|policy|filter|moderation))",
    rf"(?:(?:nsfw|explicit|unsafe|sensitive|prohibited) content (?:detected|blocked)|safety (?:filter"
    rf"|system) \w+|content (?:filter"
    rf"(?:ed)?|policy(?: violation)?|blocked|removed)|request (?:rejected|blocked|denied)"
    rf"|access denied){_END}",
    r"(?:这张|该|此|本|这幅)?(?:图片|图像|照片|画面)(?:内容|质量)?(?:太|过于|过分|非常|十分|比较|有些|有点)?"
    r"(?:模糊|暗|黑|小|不清晰|不清楚|昏暗|低)[^。\n]{0,12}(?:无法|难以|不能|看不清)",
    r"(?:图片|图像|照片)(?:加载|读取|打开|生成|处理)失败(?:[。！]|$)|(?:生成|处理|识别|加载)(?:失败|出错)(?:[。！：]|$)",
    r"(?:das|dieses|ihr) (?:bild|foto) (?:ist|wirkt|erscheint)(?: \w+){0,2} zu (?:unscharf|verschwommen"
    r"|dunkel|klein|undeutlich"
    r"|pixelig|verpixelt|unklar)[^.\n]{0,30}(?:um |$|\.)",
    r"(?:das|dieses|ihr) (?:bild|foto) (?:konnte|kann) (?:leider )?nicht\b[^.\n]{0,20}(?:geladen|geöffnet"
    r"|angezeigt|verarbeitet"
    r"|gelesen|beschrieben|erkannt)",
    r"es ist (?:leider )?(?:schwer|schwierig|nicht möglich|unmöglich)[^.\n]{0,60}(?:erkennen|beschreiben"
    r"|sagen)",
    r"(?:это )?(?:изображение|фото\w*|картинка|снимок)[^.\n]{0,12}слишком (?:размыт|т[ёе]мн|мал|неч[ёе]тк"
    r"|расплывчат)\w*"
    r"[^.\n]{0,12}(?:чтобы|для|$|\.)",
    r"(?:не удалось|невозможно|не получилось) (?:описать|загрузить|распознать|открыть|обработать|определить"
    r"|прочитать"
    r"|сгенерировать|создать)",
    r"(?:この)?(?:画像|写真)(?:が|は)[^。\n]{0,12}(?:ぼやけ|不鮮明|暗すぎ|小さすぎ|ぼけ)[^。\n]{0,24}(?:できません|わかりません"
    r"|見えません|困難|難しい)(?!と)",
    r"(?:画像|写真)(?:の読み込み|の取得|の生成)に失敗",
)  # fmt: skip

MACHINE_ERRORS = re.compile("|".join(f"(?:{each})" for each in _MACHINE), re.IGNORECASE)
PLACEHOLDER = re.compile(_PLACEHOLDER, re.IGNORECASE)
UNDESCRIBED = re.compile("|".join(f"(?:{each})" for each in _UNDESCRIBED), re.IGNORECASE)
# These reject a caption as a sentence in the middle, too.
LATER = re.compile(
    rf"{_IMAGE}[^.!?\n]{{0,40}} too {_DIM}[^.!?\n]{{0,40}}? to (?:describe|caption|provide|interpret"
    rf"|analy[sz]e)\b"
    rf"|\btoo {_DIM} (?:for me )?to (?:describe|caption)\b"
    rf"|(?:cuda|gpu|hip|mps)\b[ :]*(?:error:? )?out of memory\.? tried to allocate"
    rf"|traceback \(most recent call last\)",
    re.IGNORECASE,
)
# Markup that was not removed, and JSON without a caption.
LEFTOVER = re.compile(
    r"<\|[^|<>\s]{1,48}\|>|<｜[^｜<>\n]{1,48}｜>|(?:^|[.!?])\s*</?think(?:ing)?>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|</?(?:tool_call|function_call)>|^\s*\{\s*[\"']\w+[\"']\s*:|^\s*\[\s*\{\s*[\"']\w+[\"']\s*:"
    r"|^\s*\[\s*([\"'])[^\"'\n]{1,80}\1\s*,[^\n]*\]\s*$|^\s*\{\s*[\"'][\w -]{1,40}[\"']\s*:",
    re.IGNORECASE,
)
