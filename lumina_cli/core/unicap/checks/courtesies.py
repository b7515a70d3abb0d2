"""Words of assistants around a caption: openings, labels and closings, in several languages.

They are removed only if they are about the answer: "Let me know if you need a ride" may be a message in the
image.
"""

import re

_ANY = re.IGNORECASE
_NOUN = (
    r"(?:captions?|descriptions?|alt[- ]?text|tags?|tag list|keywords?|answers?|prompts?|summary|response"
    r"|json"
    r"|beschreibung|bildunterschrift|schlagwörter|légende|description|leyenda|descripción|etiquetas"
    r"|didascalia"
    r"|descrizione|legenda|descrição|beschrijving)"
)
_KIND = (
    r"(?:the|an?|my|your|this|final|very|short|brief|concise|simple|medium|detailed|long|longer|shorter"
    r"|full|complete"
    r"|rich|dense|good|possible|suggested|revised|corrected|improved|new|one[- ]sentence|single[- ]sentence"
    r"|english"
    r"|german|chinese|japanese|russian|french|image|photo|picture|visual|comma[- ]separated|list of|level"
    r"|generated"
    r"|requested|accurate|objective|factual|descriptive|high[- ]quality|training)"
)
_ABOUT = r"(?: (?:for|of|in|from) (?:the |this |your |that |an? )?(?:\w+ ){0,3}\w+)?"
_ASIDE = r"(?:\s*\([^()\n]{1,60}\)|\s*\[[^\[\]\n]{1,60}\])?"

# Words before a caption. "Sure, a red car" has one; "Sure Thing, a racehorse" does not.
_YES = (
    r"(?:certainly|sure(?: thing)?|of course|absolutely|definitely|okay|ok|alright|all right|understood"
    r"|got it"
    r"|as (?:you )?requested|happy to help|with pleasure"
    r"|i(?:'d| would| will| am|'m|'ll| can)(?: be)? (?:happy|glad|delighted|pleased|gladly|ready)? ?(?:to )?"
    r"(?:help|assist|describe|caption|provide|write|give|create|generate|do)\b[^.!:\n]{0,80}"
    r"|好的|好|当然(?:可以|了)?|没问题|可以的?|はい|もちろん(?:です)?|承知(?:いた)?しました|かしこまりました|わかりました"
    r"|了解(?:しました|です)|конечно|разумеется|безусловно|с удовольствием|natürlich|selbstverständlich"
    r"|(?:aber )?gerne"
    r"|na klar|bien sûr|claro(?: que sí)?|por supuesto|certo|certamente|natuurlijk)"
)
_HELLO = (
    r"(?:hello|hi(?: there)?|hey|great(?: (?:question|image|picture|photo))?|what an? [^.!\n]{1,40}|yes"
    r"|no problem"
    r"|thank(?:s| you)[^.!\n]{0,80})"
)
_HERE = (
    r"(?:here(?:'s| is| are)|below (?:is|are)|the following is|please find|i(?:'ve| have) (?:written"
    r"|created|generated"
    r"|provided|prepared)|based on|as requested|following your|looking at|voici|aquí (?:tienes|está)"
    r"|aqui está|ecco"
    r"|hier (?:ist|sind|kommt|is))"
)
_NOT_REFUSED = r"(?=\S)(?!(?:however|but|unfortunately|sadly|although|regrettably)\b)"
# "Great question!", "What a lovely photo!", "Thank you for sharing this image."
_PRAISE = (
    r"(?:(?:wow|oh)[,!]\s+)?(?:(?:(?:that(?:'s| is)|this is|what) )?(?:an? )?(?:very |really |such )?"
    r"(?:great|good"
    r"|excellent|interesting|fantastic|wonderful|nice|lovely|amazing|awesome|perfect|beautiful|cool"
    r"|gorgeous|stunning"
    r"|fascinating|thoughtful|brilliant|fun|cute|adorable) (?:question|request|choice|prompt|challenge"
    r"|query|task)"
    r"[^.!\n]{0,40}[.!]+"
    r"|(?:that(?:'s| is)|this is|what) (?:an? )(?:very |really |such )?\w+ (?:image|picture|photo(?:graph)?"
    r"|shot"
    r"|scene)(?: you (?:have|'ve) \w+(?: here)?)?!+"
    r"|(?:great|good|nice|beautiful|lovely|interesting|amazing|cool|wonderful|stunning|fantastic|awesome"
    r"|gorgeous)"
    r" (?:image|picture|photo|shot|pic)!+"
    r"|thank(?:s| you)(?: so much| very much)? for (?:(?:sharing|providing|uploading|sending|showing"
    r"|asking)\b|(?:the"
    r"|your|this) (?:image|picture|photo|question|request)\b)[^.!\n]{0,60}[.!]+"
    r"|no problem[.!,]+|(?:you're|you are) welcome[.!]+|my pleasure[.!]+|(?:i'm )?(?:so )?glad you asked[.!]+"
    r"|happy to[.!]+|gute frage[.!]+|(?:tolle|schöne|interessante|spannende) frage[.!]+"
    r"|(?:bonne|excellente) question\s?[.!]+|¡?(?:buena|excelente) pregunta[.!]+|(?:хороший|отличный"
    r"|интересный)"
    r" вопрос[.!]+"
    rf")\s+{_NOT_REFUSED}"
    r"|(?:(?:这是)?(?:一个)?(?:很)?好(?:的)?问题|(?:いい|良い|素晴らしい)(?:ご)?質問です(?:ね)?)[！!。]+\s*(?=\S)"
)
OPENINGS = tuple(
    re.compile(pattern, _ANY)
    for pattern in (
        rf"{_YES}\s*(?:[.!,:;—–，。！：；、]+|\s-)(?:\s+|(?=[^\x00-\x7f]))(?=\S)",
        r"(?:let me|let's|allow me to|i'll|i will|i'm going to) (?:describe|caption|see|look|take a look"
        r"|analy[sz]e|start)\b"
        r"[^.!:\n]{0,80}[.!:]+\s+(?=\S)",
        r"here (?:you go|it is|goes|is what i see|are my \w+)\s*[.!:]+\s+(?=\S)",
        rf"{_HELLO}\s*[.!,]+\s+(?={_YES}\W|{_HERE}\b)",
        _PRAISE,
        rf"{_HERE}\b[^:：\n]{{0,160}}?\b{_NOUN}\b[^:：\n]{{0,120}}?(?::|：|\s*\n)\s*(?=\S)",
        r"based on (?:the|this|your) (?:\w+ )?(?:image|picture|photo)(?: provided| above)?\s*[,:]\s*(?=\S)",
        r"(?:以下|下面|这|这里)(?:是|为)[^：:。\n]{0,40}(?:描述|说明|标题|标签|答案|文字)[^：:。\n]{0,20}[：:]\s*(?=\S)",
        r"(?:以下|こちら)(?:は|が)[^：:。\n]{0,40}(?:説明|キャプション|タグ)[^：:。\n]{0,20}(?:[：:]|です[。：:]?)\s*(?=\S)",
        r"вот\b[^:\n]{0,80}(?:описани|подпис|тег)[^:\n]{0,60}:\s*(?=\S)",
        # labels: "Caption:", "Final answer:", "Detailed description (English):", "The caption is:"
        rf"(?:{_KIND} ){{0,5}}{_NOUN}{_ABOUT}{_ASIDE}(?: (?:is|are|would be|could be"
        rf"|reads?)(?: as follows)?)?"
        rf"\s*[:：]\s*(?=\S)",
        rf"(?:{_KIND} ){{1,3}}(?:version|sentence|one)\s*:\s*(?=\S)",
        r"(?:title|name|subject)\s*:[^\n]{0,120}\n+(?=\W*(?:caption|description)\W)",
        r"(?:caption|description|answer)(?:\s+[-–—]\s+|\s*=\s*(?=[\"']))(?=\S)",
        r"(?:short|medium|detailed|long|brief|image)\s*:\s+(?=\S)",
        r"(?:option|version|caption|candidate|variant) ?[1A]\s*[:.)]\s*(?=\S)",
        r"(?:(?:(?:gpt-?\d\w*|code|math|llama\w*|qwen\w*|chatgpt|ai|virtual|helpful|claude|gemini|mistral)["
        r" -])?"
        r"(?:correct )?assistant|chatgpt|gpt-?\d\w*|chatbot|bot|gpt|ai|model|(?:model |ai )?(?:output"
        r"|response)"
        r"|result|final answer|solution"
        r"|助手|模型|机器人|回答|答案|答"
        r"|アシスタント|回答|答え|ассистент|ответ|assistent|antwort)\s*[:：]\s*(?=\S)",
        r"(?:图片|图像|画面|照片)?(?:的)?(?:简短|详细|中等|简要|简洁|中文)?(?:的)?(?:描述|说明|标题|标签|字幕|关键词)(?:如下)?[：:]\s*(?=\S)",
        r"(?:画像|写真)?の?(?:短い|詳細な|詳しい|簡潔な)?(?:キャプション|説明文?|タグ)[：:]\s*(?=\S)",
        r"(?:краткое |подробное |короткое |полное )?(?:описание|подпись|теги)(?: изображения| картинки"
        r"| фото)?\s*:\s*(?=\S)",
        r"(?:kurze |ausführliche |detaillierte )?(?:bild)?(?:beschreibung|unterschrift|schlagwörter|legende)"
        r"(?: des bildes)?\s*:\s*(?=\S)",
    )
)

_MORE = (
    r"\b(?:more|further|else|others?|another|help\w*|assist\w*|questions?|details?|chang\w*|adjust\w*"
    r"|modif\w*"
    r"|edit\w*|revis\w*|refine\w*|tweak\w*|versions?|captions?|descriptions?|tags?|images?|pictures?"
    r"|photos?|different"
    r"|specific|clarif\w*|expand|shorten|longer|shorter|anything|information|works?|what you think)\b"
)
_CLOSINGS = (
    rf"(?:(?:please|just|and|so),? ?)?(?:let me know|tell me)\b[^\n]*{_MORE}",
    r"let me know[.!]?$",
    r"(?:i )?(?:really )?hope (?:this|that|the|these|it)\b[^\n]{0,60}\b(?:help\w*|useful|meets?|works?"
    r"|what you|suits?)",
    r"(?:please )?feel free to\b",
    r"(?:please )?(?:do not|don't) hesitate to\b",
    r"if (?:you|there|any|this)\b[^\n]{0,160}\b(?:let me know|feel free|please|just ask|i can|i'm happy"
    r"|i'd be|i'll"
    r"|don't hesitate|happy to|glad to|tell me|just (?:say|tell|let)|ask away)",
    r"would you like (?:me\b|another|a (?:different|shorter|longer|more)|more|any|to (?:know|see|add"
    r"|change))",
    r"do you (?:want me|need|have any|want (?:another|more|a))\b[^\n]*\?",
    rf"(?:is|are) there (?:anything|any)\b[^\n]*{_MORE}",
    r"(?:can|may|shall|should|could) i (?:help|assist|provide|also|do|add|describe)\b[^\n]*\?",
    r"(?:i(?:'m| am) )(?:always )?(?:happy|glad|here) to (?:help|assist|provide|adjust|refine)",
    r"need (?:anything|something|more|help|a different|another)\b[^\n]*\?",
    r"(?:does|is) (?:this|that) (?:help|work|okay|ok|what you|sound|correct|better)\b[^\n]*\?",
    r"(?:please )?note(?: that)?\s*:?[^\n]*\b(?:descriptions?|captions?|i |i'm|ai|model|based on|may not"
    r"|cannot)\b",
    r"disclaimer\s*:",
    r"[(\[*]*(?:approx\w* |total )?(?:word|character|token|sentence)s?(?: count)?\s*:\s*~?\d+[^\n]*$",
    r"[(\[]~?\d+ (?:words|characters|tokens)[)\]]\.?$",
    r"[(\[<]*(?:the )?end(?: of)?(?: the)? (?:caption|description|response|answer|output|text"
    r"|message)[)\]>]*[.!]?$",
    r"(?:this|the|my) (?:caption|description) (?:is based|captures|provides|focuses|adheres|accurately|aims"
    r"|follows"
    r"|highlights|avoids|includes (?:all|the)|meets|should (?:help|be|meet))\b",
    r"i(?:'ve| have) (?:described|provided|written|included|tried|avoided|kept|focused|followed)\b",
    r"(?:thank you|thanks) for (?:sharing|providing|uploading|asking|your (?:image|patience|question))\b",
    r"(?:have a (?:nice|great|good|wonderful) day|happy (?:captioning|training|prompting))[.!]*$",
    r"(?:thank you|thanks)(?: very much| a lot)?[.!]*$",
    # Chinese, Japanese, Russian, German, and other languages
    r"(?:如果|若|如)(?:您|你|有)[^\n]{0,60}(?:告诉我|告知|随时|请|问我|联系)",
    r"(?:请(?:随时)?(?:告诉我|告知|联系我))",
    r"希望(?:这|以上|对|能)[^\n]{0,40}(?:帮助|帮到|有用|满意|符合)",
    r"(?:还)?有(?:其他|什么|任何)[^\n]{0,40}(?:帮助|帮您|问题|需要|修改)[^\n]{0,10}(?:吗|？)",
    r"(?:他に|ほかに|何か|さらに|もし)[^\n]{0,60}(?:お知らせ|お申し付け|ください|でしょうか|お聞き)",
    r"(?:お役に立|ご参考に)",
    r"дайте (?:мне )?знать\b",
    r"если (?:вам|у вас|вы|хотите|нужн)[^\n]{0,120}(?:дайте|обращайтесь|сообщите|скажите|напишите"
    r"|спрашивайте|готов|могу)",
    r"надеюсь,?[^\n]{0,60}(?:помо|полез)",
    r"(?:хотите,? чтобы я|чем ещё могу|нужно ли)[^\n]*\?",
    r"(?:lass(?:t|en sie)? (?:es )?mich (?:gerne |bitte )?wissen|sag(?:t|en sie)? (?:mir )?(?:gerne "
    r"|einfach )?bescheid)",
    r"(?:wenn|falls) (?:du|sie|ihr)\b[^\n]{0,120}\b(?:bescheid|wissen|fragen|gerne|melde|sag|sagen)\b",
    r"ich hoffe,?[^\n]{0,60}(?:hilft|hilfreich|geholfen|weiter)",
    r"(?:möchtest du|möchten sie|soll ich|kann ich (?:dir|ihnen))[^\n]*\?",
    r"(?:n'hésitez pas|n'hésite pas|j'espère que|faites-moi savoir|dites-moi si|no dudes? en|avísame"
    r"|espero que (?:esto|te)"
    r"|háganme saber|hazme saber|fammi sapere|spero che (?:questo|ti)|me avise|laat (?:het )?me weten)",
)
CLOSING = re.compile("|".join(f"(?:{each})" for each in _CLOSINGS), _ANY)

_SENTENCE_STARTS = re.compile(
    r"(?<=[.!?…])[\"”)\]*_]*\s+|(?<=[。！？])|\n+|\s+(?=\((?:word|character|token|~?\d+ w))", _ANY
)


_ONLY = re.compile(rf"(?:{_YES}\s*[.!,:;，。！：]*\s*)+$", _ANY)

LAST = 12  # sentences at the end of a text among which closings are searched
_TAIL = re.compile(r"(?:\n\s*[-*_—=]{2,}|\s[(\[])$")  # a rule or a bracket before a closing


def strip_opening(text: str) -> str:
    """Return a text without the words of an assistant before its caption."""
    for _ in range(6):
        before = text
        text = text.strip()
        for opening in OPENINGS:
            if found := opening.match(text.replace("’", "'")):
                text = text[found.end() :].lstrip()
        if text == before.strip():
            break
    return "" if _ONLY.match(text) else text


def strip_closing(text: str) -> str:
    """Return a text without the sentences of an assistant after its caption."""
    text = text.rstrip()
    while True:
        starts = [0, *(mark.end() for mark in _SENTENCE_STARTS.finditer(text) if mark.end() < len(text))]
        ends = [*starts[1:], len(text)]
        sentences = [(start, text[start:end]) for start, end in zip(starts, ends, strict=True)][-LAST:]
        closings = [number for number, (_, sentence) in enumerate(sentences) if _is_closing(sentence)]
        # a sentence like it before others of the caption belongs to the image
        at = next(
            (n for n in closings if all(_is_closing(one) or _is_short(one) for _, one in sentences[n:])), None
        )
        if at is None:
            return text
        text = _TAIL.sub("", text[: sentences[at][0]].rstrip())


def _is_closing(sentence: str) -> bool:
    return CLOSING.match(sentence.replace("’", "'").lstrip("*_ ")[:400]) is not None


def _is_short(sentence: str) -> bool:
    return len(sentence.strip()) < 16 and len(sentence.strip(" *_-–—").split()) < 3 and sentence.isascii()
