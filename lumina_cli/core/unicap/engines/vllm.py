"""Engine for vLLM in this process: all questions of a batch in one call, scheduled by vLLM."""

from collections.abc import Sequence
from typing import Any

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.unicap.protocol import Answer, Engine, Question

DEFAULT = "U4R/OmniCaptioner"
TEMPERATURE, TOP_K, TOP_P, RETRY_TEMPERATURE = 0.2, 10, 0.8, 0.3  # as in engines/transformers.py


class Captioner(Engine):
    """A model in vLLM, on the devices that vLLM selects.

        model    folder or hub id

    Each question is sampled with its own seed, but vLLM does not guarantee the same text in any batch.

    Raises:
        MissingDependency: if vLLM is not installed.
        UsageError: if `device` is set.
        LuminaError: if vLLM cannot load the model.
    """

    structured = "guided"

    def __init__(self, model: str | None = None, device: str | None = None):
        try:
            import vllm
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise MissingDependency(
                "--engine vllm needs a GPU and `pip install 'lumina-cli[vllm]'`; or `vllm serve` elsewhere "
                "and --engine openai --endpoint URL"
            ) from error
        if device not in (None, "auto", "cuda"):
            raise UsageError(
                f"vLLM selects its devices; set CUDA_VISIBLE_DEVICES instead of --device {device}"
            )
        self.name, self.found = model or DEFAULT, None if model else DEFAULT
        self.apply_model_settings(self.name)
        self.vllm, self.form = vllm, StructuredOutputsParams
        try:
            self.model = vllm.LLM(model=self.name, limit_mm_per_prompt={"image": 1})
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LuminaError(f"vLLM cannot load {self.name} ({reason})") from error

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer the questions."""
        conversations = [[{"role": "user", "content": self._content(question)}] for question in questions]
        settings = [self._settings(question) for question in questions]
        found = self.model.chat(conversations, sampling_params=settings, use_tqdm=False)
        return [self._read(one.outputs[0]) for one in found]

    def _content(self, question: Question) -> list[dict[str, Any]]:
        image = [{"type": "image_pil", "image_pil": question.image}] if question.image else []
        return [*image, {"type": "text", "text": question.text}]

    def _settings(self, question: Question) -> Any:
        form = {"structured_outputs": self.form(json=question.form)} if question.form else {}
        return self.vllm.SamplingParams(
            temperature=TEMPERATURE + RETRY_TEMPERATURE * question.attempt,
            top_p=TOP_P,
            top_k=TOP_K,
            seed=question.seed % 2**31,
            max_tokens=question.max_tokens,
            **form,
        )

    def _read(self, output: Any) -> Answer:
        return Answer(output.text.strip(), output.finish_reason != "length", len(output.token_ids))
