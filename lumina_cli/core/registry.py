"""Tables of names: a word on the command line is a key here, and its code is imported when it is used."""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import UsageError


def nearest(word: str, known) -> str | None:
    """Return the one of `known` that `word` may be misspelt for, or None."""
    cutoff = 0.5 if len(word) <= 2 else 0.55  # one wrong letter of two is half the word
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or an empty string."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


class Registry(dict[str, str]):
    """A table of `name -> "module:attribute"`; `load(name)` imports the attribute."""

    def __init__(self, kind: str, entries: dict[str, str]):
        super().__init__(entries)
        self.kind = kind

    def load(self, name: str) -> Any:
        """Import and return the object that `name` refers to.

        Raises:
            UsageError: if the registry does not contain `name`; the message lists the known names.
        """
        if name not in self:
            hint = did_you_mean(name, self) or f"; choose from {', '.join(self)}"
            raise UsageError(f"unknown {self.kind} {name!r}{hint}")
        module, attribute = self[name].split(":")
        return getattr(import_module(module), attribute)


CORE = "lumina_cli.core"
ASSETS = Path(__file__).resolve().parents[1] / "assets"  # what ships inside the package

SOLVERS = Registry(
    "solver",
    {
        "euler": f"{CORE}.flow.solvers:euler",
        "midpoint": f"{CORE}.flow.solvers:midpoint",
        "heun": f"{CORE}.flow.solvers:heun",
        "rk4": f"{CORE}.flow.solvers:rk4",
        "dpmpp_2m": f"{CORE}.flow.solvers:dpmpp_2m",
        "dpm": f"{CORE}.flow.solvers:dpmpp_2m",  # alias of dpmpp_2m
        "unipc": f"{CORE}.flow.solvers:unipc",
    },
)
CAPTIONERS = Registry(
    "captioner",
    {
        "transformers": f"{CORE}.unicap.engines.transformers:Captioner",
        "openai": f"{CORE}.unicap.engines.openai:Captioner",
        "vllm": f"{CORE}.unicap.engines.vllm:Captioner",
        "ray": f"{CORE}.unicap.engines.ray:Captioner",
        "nano": f"{CORE}.unicap.engines.nano:Captioner",
        "noop": f"{CORE}.unicap.engines.noop:Captioner",
    },
)
# What `lumina shard score` can measure of a picture.
SCORES = Registry(
    "score",
    {
        "sharpness": f"{CORE}.curation.metrics:Sharpness",
        "entropy": f"{CORE}.curation.metrics:Entropy",
        "phash": f"{CORE}.curation.metrics:PerceptualHash",
        "text_area": f"{CORE}.curation.metrics:TextArea",
        "aesthetic": f"{CORE}.curation.classifiers:Aesthetic",
        "nsfw": f"{CORE}.curation.classifiers:Nsfw",
    },
)
BENCHMARKS = Registry("benchmark", {"geneval": f"{CORE}.evals.geneval.rules:GenEval"})
JUDGES = Registry("judge", {"nano": f"{CORE}.evals.judges.nano:NanoJudge"})
KERNELS = Registry("kernel", {"attention": f"{CORE}.kernels.attention:OP"})
MODELS = Registry(
    "model",
    {
        "nano": f"{CORE}.models.locate:find_nano",
        "lumina-image-2": f"{CORE}.models.locate:find_lumina_image_2",
    },
)
# What `lumina train` can build: the transformer of a pipeline, or one of the small frozen parts of nano.
PARTS = Registry(
    "part",
    {
        "transformer": f"{CORE}.training.loop:train_transformer",
        "autoencoder": f"{CORE}.training.nano.autoencoder:train_autoencoder",
        "text_encoder": f"{CORE}.training.nano.text_encoder:train_text_encoder",
        "detector": f"{CORE}.training.nano.detector:train_detector",
        "captioner": f"{CORE}.training.nano.captioner:train_captioner",
    },
)
