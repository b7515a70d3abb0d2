"""Phrases that reject a caption, in five languages: refusals, empty openings, unfinished endings."""

import re

# A refusal starts the answer, optionally after polite words, and is about the model: what it cannot do or did
# not receive. The same words elsewhere, or with other verbs, are signs, titles and buttons in the image.
_SORRY = "[\\s,.!;:*_—–-]*"  # separators between polite words and the rest
_PICTURE = r"(?:image|picture|photo(?:graph)?|file|attachment)s?"
_POLITE = (
    r"(?:(?:hello|hi|hey|oh|well|sorry|unfortunately|regrettably|(?:my )?(?:sincere )?apologies"
    r"|i (?:do |must )?apologi[sz]e|i regret(?: to say)?|i(?:'m| am) afraid|thank(?:s"
    r"| you)\b[^.!\n]{0,60}[.!]"
    r"|(?:that(?:'s| is) )?(?:an? )?(?:great|good|excellent|interesting|nice|beautiful|lovely) (?:question"
    r"|image|photo"
    r"|picture)[.!]"
    r"|i(?:'m| am)(?: (?:very|so|really|truly|deeply))? sorry)(?: there| about that| for (?:the|any) \w+)?"
    + _SORRY
    + r"(?:(?:but|that|and|however)[\s,]+)?)"
)
_UNABLE = (
    r"i(?: (?:can ?not|can't|could ?n[o']t|won't|will not|must decline to|do(?: not|n't)|am (?:not able"
    r"|unable) to)"
    r"|'m (?:not able|unable) to)(?: (?:currently|directly|actually|really|seem to|be able to|help but))?"
)
# These have no other meaning at the start of a caption,
_ANSWERS = (
    r"(?:assist|comply|fulfil|describe|(?:view|access|open|load|process|analy[sz]e|interpret|caption"
    r"|identify"
    r"|display|generate)(?: \w+){0,3} (?:images?|pictures?|photos?|files?|people|persons?|individuals?"
    r"|content"
    r"|captions?|descriptions?|requests?)"
    r"|(?:see|find|detect)(?: \w+){0,2} (?:images?|pictures?|photos?|attachments?)"
    r"|view (?:that|this|it)\b|provide|help (?:you )?with|have (?:access|the (?:ability|capability))"
    r"|engage in|participate in)\b"
)
# and these have none after an apology.
_HELPS = (
    r"(?:see|view|access|open|load|process|analy[sz]e|help|do (?:that|this|it)|create|write|generate|answer"
    r"|discuss|identify|recogni[sz]e|determine|interpret|read|perform|offer|produce|respond|comment"
    r"|continue"
    r"|caption|display|share (?:that|this)|support|make out)\b|[.!]|$"
)
_EN_REFUSALS = (
    rf"{_POLITE}*(?:{_UNABLE} {_ANSWERS}|as an? (?:ai|artificial intelligence|(?:large )?language model|"
    rf"text-based)\b|i(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language model|text-based)\b"
    rf"|(?:it (?:seems|looks|appears)(?: like| that| as if)? )?(?:there(?:'s| is| was) )?no {_PICTURE} "
    r"(?:(?:was|is|has been|were|appears to be) )?(?:provided|attached|included|uploaded|shared"
    r"|visible to me)\b"
    rf"|(?:it (?:seems|looks|appears)(?: like| that)? )?you (?:have(?: not|n't)|did(?: not|n't)) "
    rf"(?:\w+ )?(?:provide|upload|attach|share|include)(?:d|ed)?\b"
    rf"|i (?:see no|need (?:an?|the|you)|(?:only )?see (?:an? )?(?:blank|empty)) (?:to (?:see"
    rf"|upload) )?(?:the |an? )?"
    rf"{_PICTURE}|(?:please|(?:could|can) you(?: please)?) (?:re-?)?(?:upload|provide|share|attach|send)"
    rf"(?: me)? (?:the|an?|your|another) (?:\w+ )?{_PICTURE}(?: again)?(?:\s*[.,!?]|\s*$| (?:so|and"
    rf"|for me|you)\b))"
    rf"|i(?:'d| would) need to see (?:the|your|an?) {_PICTURE}"
    rf"|{_POLITE}+(?:{_UNABLE}(?: {_HELPS})|{_UNABLE}\s*(?:[.!]|$)|i(?:'m| am) not (?:comfortable|sure"
    rf"|allowed)\b"
    rf"|there (?:is|was) no {_PICTURE}\b|the {_PICTURE} (?:is|was|are|could|does|did)\b)"
)
_ZH_REFUSALS = (
    r"(?:您好[，！。])?(?:(?:我)?(?:很|非常|十分|真的|真)?(?:抱歉|对不起|不好意思|遗憾)[，,。！ ]*(?:但"
    r"|不过|但是)?)?"
    r"(?:我(?:目前|现在|暂时|并)?(?:无法|不能|没办法|没有办法|看不到|没有看到|没有收到|没法)(?:直接"
    r"|为您|为你|帮您)?"
    r"(?:查看|看到|看见|识别|描述|提供|访问|打开|帮助|协助|回答|满足|处理|生成|分析|完成|显示|讨论|图"
    r"|您|你|任何图|这张图)"
    r"|作为(?:一个|一名|一款)?(?:AI|人工智能|语言模型|大型语言模型|文本)"
    r"|(?:您|你)(?:好像|似乎)?(?:没有|并未|未|还没有?)(?:提供|上传|附上|发送)"
    r"|请(?:您)?(?:重新)?(?:提供|上传|发送)(?:一张|一下|您的)?(?:图片|图像|照片)(?:[，,。！]|以便|后我|$))"
    r"|(?:很|非常|十分|真的|真)?(?:抱歉|对不起)[，,。！ ]*(?:无法|不能)(?:查看|看到|识别|描述|提供|处理"
    r"|回答|协助|帮助|满足|显示)"
    r"|无法(?:查看|识别|访问|描述)(?:该|此|这张|您的)"
)
_JA_REFUSALS = (
    r"(?:(?:大変|誠に)?申し訳(?:ありません|ございません|ないのです|ないです)(?:が|けど|けれども)?"
    r"|すみません(?:が)?|"
    r"ごめんなさい|残念ながら|恐れ入りますが)[、。, ]*[^「」『』]{0,40}?(?:できません|できかねます"
    r"|いたしかねます|見えません"
    r"|見られません|見当たりません|提供されていません|添付されていません|お答え|お手伝い|お応え"
    r"|認識でき)(?!で?した?と|と(?:書|記|表|い))"
    r"|(?:私は)?(?:AI|人工知能|(?:大規模)?言語モデル)(?:アシスタント|言語モデル|モデル)?(?:として"
    r"|なので|ですので|であるため)"
    r"|(?:私(?:に)?は)?(?:この|その)?画像(?:が|は|を)(?:見えません|提供されていません"
    r"|添付されていません|確認できません"
    r"|見ることができません|表示できません|説明できません)(?!と)"
    r"|(?:私は)?お答えできません(?!と)|画像を(?:提供|アップロード|添付)してください(?:[。、]|$)"
)
_RU_POLITE = (
    r"(?:(?:здравствуйте|извините(?: меня)?|простите|к сожалению|прошу прощения|сожалею"
    r"|мне (?:очень )?жаль|увы)" + _SORRY + r"(?:но\s+)?)"
)
_RU_DOES = (
    r"(?:увидеть|видеть|описать|описывать|помочь|просмотреть|просматривать|посмотреть|предоставить"
    r"|определить"
    r"|выполнить|ответить|распознать|обработать|создать|открыть|анализировать|проанализировать|составить)"
)
_RU_REFUSALS = (
    rf"{_RU_POLITE}*(?:я не (?:могу|в состоянии|умею)(?: \w+){{0,4}} {_RU_DOES}"
    rf"|я не вижу (?:\w+ )?(?:изображени|картин|фото)"
    r"|как (?:ИИ|языковая модель|искусственный интеллект|нейросеть)\b|я(?: —| -"
    r"|,)? (?:всего лишь )?(?:ИИ|языковая модель)\b"
    r"|вы не (?:прикрепили|предоставили|загрузили|приложили)"
    r"|(?:изображение|картинка|фото) не (?:было )?(?:прикреплен|предоставлен|приложен)\w+"
    r"|пожалуйста, (?:загрузите|прикрепите|предоставьте|отправьте) (?:изображение|картинку"
    r"|фото)(?:\s*[.,!]|\s*$))"
    rf"|{_RU_POLITE}+(?:я не (?:могу|вижу|в состоянии|имею)|у меня нет|мне не удаётся|мне не удается)"
)
_DE_POLITE = (
    r"(?:(?:hallo|(?:es )?tut mir (?:sehr |wirklich )?leid|entschuldigung|entschuldige|verzeihung"
    r"|leider|sorry|"
    r"bedauerlicherweise|ich bedaure|ich entschuldige mich)" + _SORRY + r"(?:(?:aber|doch|dass)\s+)?)"
)
_DE_DOES = (
    r"(?:sehen|erkennen|beschreiben|helfen|anzeigen|öffnen|beantworten|erstellen|identifizieren"
    r"|bereitstellen"
    r"|verarbeiten|liefern|weiterhelfen|analysieren|einsehen|nachkommen|geben|erfüllen|anschauen|ansehen)\b"
)
_DE_REFUSALS = (
    rf"{_DE_POLITE}*(?:ich kann\b[^.!?\"„»–—]{{0,60}}\b(?:nicht|kein\w*)\b[^.!?\"„»–—]{{0,60}}{_DE_DOES}"
    r"|ich sehe (?:hier )?kein(?:e|en)? (?:bild|foto|datei)|als (?:KI|künstliche Intelligenz"
    r"|(?:KI-)?Sprachmodell)\b"
    r"|ich bin (?:nur )?(?:eine? )?(?:KI|(?:KI-)?Sprachmodell)\b"
    r"|es (?:wurde|ist) (?:leider )?kein (?:bild|foto) (?:hochgeladen|angehängt|beigefügt"
    r"|bereitgestellt|übermittelt)"
    r"|(?:du hast|sie haben) (?:\w+ )?kein (?:bild|foto)"
    r"|bitte (?:lade|laden sie|stelle|stellen sie|sende|senden sie)[^.!?]{0,40}(?:bild"
    r"|foto)[^.!?]{0,20}damit ich)"
    rf"|{_DE_POLITE}+(?:ich (?:kann|darf|bin nicht|habe kein)|(?:kann|darf|sehe|habe) ich\b|das geht nicht|"
    rf"dabei kann ich)(?![^.!?]{{0,60}}[\"„»])"
)
REFUSALS = re.compile(
    "|".join((_EN_REFUSALS, _ZH_REFUSALS, _JA_REFUSALS, _RU_REFUSALS, _DE_REFUSALS)), re.IGNORECASE
)

# Openings without content: "This image shows", "An image of". Openings that describe the style ("a photo of
# a car", "an oil painting of", "auf dem Foto") are allowed.
_EN = r"(?:image|picture|scene|visual)"
_VERB = (
    r"(?:shows?|depicts?|features?|displays?|captures?|presents?|portrays?|illustrates?"
    r"|contains?|showcases?|is of)"
)
_OPENINGS = (
    # English "a picture of" is allowed: unlike "a photo of", it marks a drawing or a rendering.
    rf"(?:in )?(?:this|the|the given|the provided) (?:\w+ )?{_EN}(?: (?:here|above|provided))?,? "
    rf"(?:{_VERB}|there (?:is|are)|we (?:can )?see|you can see)\b",
    rf"(?:this|the) (?:photo|photograph|illustration|painting|drawing) {_VERB}\b",
    r"(?:this is |here is )?an? (?:image|visual) (?:of|showing|depicting|that shows|with)\b",
    rf"(?:this is |here is )an? {_EN} (?:of|showing|depicting|that shows|with)\b",
    rf"an? {_EN} (?:showing|depicting|that shows)\b",
    r"(?:here is|here's) (?:a|the) (?:\w+ )?(?:caption|description)\b|(?:sure|certainly|of course)[,!]|"
    "caption:",
    r"(?:here(?:'s| is| are)|below (?:is|are)|the following (?:is|are)) (?:an? |the |my |some )?(?:\w+["
    r" -]){0,3}?"
    r"(?:breakdown|analysis|overview|run-?down|observations?|(?:key|main|visual) (?:elements|points|details"
    r"|features"
    r"|components|aspects))\b",
    r"(?:let's|let me|i'll|i will) (?:break (?:it|this|the \w+|down)\b|analy[sz]e (?:it|this|the)\b)"
    r"|(?:the|this) (?:image|picture|photo|scene) can be (?:broken down|described as follows|analy[sz]ed)\b",
    r"(?:这|此|该|本)(?:张|幅|个)?(?:图|图片|图像|画面|照片|插图)(?:中|里)?"
    r"(?:展示|显示|描绘|呈现|描述|展现|是一|为一|拍摄|有)",
    r"(?:图中|图片中|画面中)(?:展示|显示|可以看到)|一(?:张|幅)(?:图片|图像)[，,：]|以下是",
    r"(?:この|本)(?:画像|写真|絵|イラスト)(?:は|には|では|に写|に描|で示)|画像(?:に|で)は|以下は",
    r"(?:на )?(?:этом|данном) (?:изображении|снимке|фото|рисунке|картинке)\b|(?:это|данное) изображение\b",
    r"на (?:изображении|картинке) (?:показан|изображ|представлен|видн)",
    r"изображение (?:показывает|содержит|представляет)",
    r"(?:dieses|das) (?:bild|foto) (?:zeigt|stellt|ist ein|enthält)|(?:auf|in) diesem (?:bild|foto)\b",
    r"ein bild,? (?:das|auf dem)\b|hier ist (?:eine|die) (?:bild)?(?:beschreibung|unterschrift)\b",
)
BOILERPLATE = re.compile("|".join(_OPENINGS), re.IGNORECASE)

# Words that cannot end a sentence, in lower case only, as "a letter A" can. English sentences may end with
# verbs and prepositions ("the door he came in"), German ones with verb prefixes ("fährt ein"). Russian ones
# cannot end with prepositions, but "220 в" is a unit. Chinese words such as "柔和" (soft) end with 和.
# Japanese ふもと and まんが are words, so は, が, と, や and の count only after kanji and katakana.
_WORDS = {
    "en": "a an the and or nor its their than whose every",
    "de": "und oder sowie der die das den dem des eine einen einem im am vom zum zur ins als von",
    "ru": "и или на в с со из под над от к для без при между",
}
_LAST = {
    lang: rf"(?<!\d )(?<![IVX] )(?<!letter )(?<!букв. )\b(?:{'|'.join(words.split())})"
    for lang, words in _WORDS.items()
} | {
    "zh": "(?<![柔温祥平缓谐融共总随饱中协谦调亲晴和])和|(?<![参赠给赋授付])与|或|以及|并且|位于"
    "|[有着][一两几三][只个辆张条位件名座本]",
    "ja": "[にで]は|[\u30a1-\u30fa\u30fc一-鿿](?<![然々])[はがとやの]|を",
}
_LAST["de"] += r"|\b(?:auf|in|mit|von|an|neben|vor|aus) einer"
_STOPS = r"[,;:(\[{„「『（，、；：《]|\s[-–—]"
UNFINISHED = {lang: re.compile(rf"(?:{_STOPS}|{words})\s*$") for lang, words in _LAST.items()}
UNFINISHED[""] = re.compile(rf"(?:{_STOPS})\s*$")  # any other language
# These can end an English sentence only if they refer back: "what it is made of".
_OPEN_ENDS = r"\b(?:of|with|next to|such as|as well as|due to|along with|according to|consisting of)"
BELONGS = re.compile(
    r"\b(?:that|which|who|whom|whose|what|where|how|he|she|it|they|we|you|i|being|worth|to (?!the|an?"
    r"|his|her|its|their|two)\w+"
    r"|(?:taken|taking|take) care of|dream\w* of|think\w* of|thought of|disposed of|unheard of"
    r"|made fun of)\b",
    re.IGNORECASE,
)
OPEN_END = re.compile(rf"{_OPEN_ENDS}\s*$")
# An opening quotation mark without a closing one or any other end after it.
UNQUOTED = re.compile(
    '(?:(?:^|[\\s(:：，])(["“„])|[一-鿿]“|[「『《])[^"”“»」』》]*[^"”“»」』》.!?…。！？\\s]\\s*$'
)

# Words that may be doubled: for emphasis, by grammar ("the man that that dog follows", "Frauen, die die
# Kinder halten", "with its lights on on a road"), or as a name (a yo yo).
_TWICE = {
    "en": "very really so that had is in on her you it do no far much many more way bye cha yo choo knock "
    "tuk aye pom can tam ha row there now night chop hush half tsk tom right left well please wow oh la na "
    "da big old little long too up go boo mau chi wah beep dum ding tick quack woof meow moo gaga",
    "de": "die der das den dem sie sehr ganz viel viele weit lange immer ja nein so es als werden tuk cha "
    "yo wau miau",
    "ru": "очень что то еле чуть вот так да нет давно много далеко скоро едва как было все всё тук",
}
TWICE = {lang: frozenset(words.split()) for lang, words in _TWICE.items()}
# These may not, not even capitalized at the start of a sentence.
_JOINTS = "the a an of and with at to from by der die das ein eine und mit von и с из от"
NEVER_TWICE = frozenset(_JOINTS.split())
