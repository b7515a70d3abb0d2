"""Engine without a model: fixed captions and tags that pass all checks, for timing everything else."""

from collections.abc import Sequence

from lumina_cli.core.unicap.protocol import Answer, Engine, Question

TEXTS = {
    "en": "a red car stands to the left of a blue ball on a plain grey floor in the light",
    "zh": "一辆红色的汽车停在蓝色的球左边，地面是灰色的，光线来自左侧，画面干净。",
    "ja": "赤い車が青いボールの左にあり、灰色の床に柔らかい影が落ちている。",
    "ru": "красная машина стоит слева от синего мяча на сером полу при ярком свете",
    "de": "ein rotes Auto steht links von einem blauen Ball auf einem grauen Boden im Licht",
}
TAGS = {
    "en": "red car, blue ball, grey floor, soft light",
    "zh": "红色汽车，蓝色的球，灰色地面，柔和的光线",
    "ja": "赤い車、青いボール、灰色の床、柔らかい光",
    "ru": "красная машина, синий мяч, серый пол, яркий свет",
    "de": "rotes Auto, blauer Ball, grauer Boden, helles Licht",
}


class Captioner(Engine):
    """Answers every question with a fixed sentence, or fixed tags, in its language."""

    heeds_hints = False
    languages = tuple(TEXTS)

    def __init__(self, model: str | None = None, device: str | None = None):
        self.name = "noop"

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer the questions with fixed texts."""
        texts = [(TAGS if question.level == "tags" else TEXTS)[question.lang] for question in questions]
        return [Answer(text, True, len(text.split())) for text in texts]
