"""Tables of names: a name on the command line is a key here, and its code is imported on first use."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError

# arguments of diffusers' pipelines, and what a call and an option of `lumina sample` are named instead
DIFFUSERS_NAMES = {
    "guidance_scale": "guidance", "num_inference_steps": "steps", "negative_prompt": "negative",
    "num_images_per_prompt": "count", "height": "size", "width": "size", "generator": "seed",
    "image": "init", "mask_image": "mask", "system_prompt": "system",
}  # fmt: skip
SHORT = 4  # letters of a word whose nearest name must be one edit away


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the entry of `known` that `word` most likely misspells, or None.

    A short word must be one edit away: "foo" and "noop" share half their letters by chance.
    """
    cutoff = 0.5 if len(word) <= 2 else 0.55  # one wrong letter of two is half the word
    near = get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return next((name for name in near if len(word) > SHORT or is_one_edit(word, name)), None)


def is_one_edit(word: str, other: str) -> bool:
    """Return whether two words differ in one inserted, missing, replaced or swapped letter, or in case."""
    word, other = sorted((word.lower(), other.lower()), key=len)
    same = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), len(word))
    swapped = word[same : same + 2] == other[same : same + 2][::-1]
    return (
        word[same:] == other[same + 1 :]
        or word[same + 1 :] == other[same + 1 :]
        or (swapped and word[same + 2 :] == other[same + 2 :])
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest entry of `known`, or an empty string."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


class Registry(dict[str, str]):
    """A table `name -> "module:attribute"` whose `load(name)` imports the attribute.

    Other installed packages add names with entry points in `group`. Built-in names take precedence. Iterating
    yields built-in names only, because finding entry points reads the metadata of every installed package:
    that happens when a name is not built in, and in `names`, which error messages list. `aliases` are further
    accepted names for built-in ones; they are not listed, and neither are `unlisted` names in error messages.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        entries: dict[str, str],
        aliases: dict[str, str] | None = None,
        unlisted: tuple[str, ...] = (),
    ):
        super().__init__(entries)
        self.kind, self.group, self.aliases, self.unlisted = kind, group, aliases or {}, unlisted

    def resolve(self, name: str) -> str:
        """Return the name that `name` is an alias of, or `name` itself."""
        return self.aliases.get(name, name)

    @cached_property
    def plugins(self) -> dict[str, list]:
        """Entry points of other packages by name; more than one if several packages use the same name."""
        from importlib.metadata import entry_points

        found: dict[str, list] = {}
        try:
            for point in entry_points(group=self.group):
                if not super().__contains__(point.name):
                    found.setdefault(point.name, []).append(point)
        except Exception as error:  # metadata is written by other packages and may be damaged in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise LuminaError(f"cannot read the entry points of installed packages: {reason}") from error
        return found

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.aliases or name in self.plugins

    def names(self) -> list[str]:
        """Return all names: the built-in ones in their order, then those of other packages."""
        return [*self, *self.plugins]

    def load(self, name: str) -> Any:
        """Import and return the object registered as `name`.

        Raises:
            UsageError: if no such name exists; the message lists the known names.
            LuminaError: if the entry point of another package cannot be imported or is ambiguous.
        """
        name = self.resolve(name)
        if super().__contains__(name):
            module, attribute = self[name].split(":")
            return getattr(import_module(module), attribute)
        if name in self.plugins:
            return self._load_plugin(name)
        known = [each for each in self.names() if each not in self.unlisted]
        hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
        raise UsageError(f"unknown {self.kind} {name!r}{hint}")

    def _load_plugin(self, name: str) -> Any:
        points = self.plugins[name]
        packages = " and ".join(sorted({point.dist.name if point.dist else "?" for point in points}))
        if len(points) > 1:
            raise LuminaError(
                f"{self.kind} {name!r} is registered by {packages} (entry points {self.group}); uninstall one"
            )
        try:
            return points[0].load()
        except LuminaError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise LuminaError(
                f"{self.kind} {name!r} of package {packages}: cannot load {points[0].value}: {reason}"
            ) from error


CORE = "lumina_cli.core"
ASSETS = Path(__file__).resolve().parents[1] / "assets"  # model files that ship with the package

SOLVERS = Registry(
    "solver",
    "lumina.solvers",
    {
        "euler": f"{CORE}.flow.solvers:euler",
        "midpoint": f"{CORE}.flow.solvers:midpoint",
        "heun": f"{CORE}.flow.solvers:heun",
        "rk4": f"{CORE}.flow.solvers:rk4",
        "dpmpp_2m": f"{CORE}.flow.solvers:dpmpp_2m",
        "unipc": f"{CORE}.flow.solvers:unipc",
    },
    aliases={"dpm": "dpmpp_2m"},  # the name in plans of earlier releases
)
# How a plan combines the two branches of guidance, `guide` of a plan.
GUIDANCE = Registry(
    "guidance",
    "lumina.guidance",
    {
        "cfg": f"{CORE}.flow.guidance:cfg_guidance",
        "apg": f"{CORE}.flow.guidance:apg_guidance",
        "cfg-zero": f"{CORE}.flow.guidance:cfg_zero_guidance",
    },
)
# Which network calls skip the main layers, `cache` of a plan.
CACHES = Registry(
    "cache",
    "lumina.caches",
    {
        "tea": f"{CORE}.sampling.teacache.kinds:tea_cache",
        "first": f"{CORE}.sampling.teacache.kinds:first_block_cache",
        "error": f"{CORE}.sampling.teacache.kinds:error_budget_cache",
    },
)
# Replacements for the large linear layers, `--quantize`.
QUANTIZERS = Registry(
    "quantization",
    "lumina.quantizers",
    {
        "int8": f"{CORE}.nextdit.packed.quantize:LinearInt8",
        "int8-weights": f"{CORE}.nextdit.packed.quantize:Int8Weights",
    },
)
# Captioning engines: `lumina caption --engine`.
CAPTIONERS = Registry(
    "captioner",
    "lumina.captioners",
    {
        "transformers": f"{CORE}.unicap.engines.transformers:Captioner",
        "openai": f"{CORE}.unicap.engines.openai:Captioner",
        "vllm": f"{CORE}.unicap.engines.vllm:Captioner",
        "ray": f"{CORE}.unicap.engines.ray:Captioner",
        "nano": f"{CORE}.unicap.engines.nano:Captioner",
        "noop": f"{CORE}.unicap.engines.noop:Captioner",
    },
    unlisted=("noop",),  # fixed sentences, for measurements only
)
# Image-caption agreement: `lumina caption --score`.
CAPTION_SCORERS = Registry(
    "scorer",
    "lumina.caption_scorers",
    {
        "clip": f"{CORE}.unicap.scoring.clip:ClipScorer",
        "objects": f"{CORE}.unicap.scoring.grounding:GroundingScorer",
        "nano": f"{CORE}.unicap.scoring.clip:NanoScorer",
    },
)
# Image metrics: `lumina shard score --scores`.
SCORES = Registry(
    "score",
    "lumina.scores",
    {
        "sharpness": f"{CORE}.curation.metrics:Sharpness",
        "entropy": f"{CORE}.curation.metrics:Entropy",
        "phash": f"{CORE}.curation.metrics:PerceptualHash",
        "text_area": f"{CORE}.curation.metrics:TextArea",
        "aesthetic": f"{CORE}.curation.classifiers:Aesthetic",
        "nsfw": f"{CORE}.curation.classifiers:Nsfw",
    },
)
BENCHMARKS = Registry("benchmark", "lumina.benchmarks", {"geneval": f"{CORE}.evals.geneval.rules:GenEval"})
JUDGES = Registry("judge", "lumina.judges", {"nano": f"{CORE}.evals.judges.nano:NanoJudge"})
KERNELS = Registry("kernel", "lumina.kernels", {"attention": f"{CORE}.kernels.attention:OP"})
MODELS = Registry(
    "model",
    "lumina.models",
    {
        "nano": f"{CORE}.models.locate:find_nano",
        "lumina-image-2": f"{CORE}.models.locate:find_lumina_image_2",
        "neta-lumina": f"{CORE}.models.locate:find_neta_lumina",
        "netayume-lumina": f"{CORE}.models.locate:find_netayume_lumina",
    },
)
# Components that `lumina train` trains: a transformer, or one of nano's small frozen components.
PARTS = Registry(
    "part",
    "lumina.parts",
    {
        "transformer": f"{CORE}.training.loop:train_transformer",
        "autoencoder": f"{CORE}.training.nano.autoencoder:train_autoencoder",
        "text_encoder": f"{CORE}.training.nano.text_encoder:train_text_encoder",
        "detector": f"{CORE}.training.nano.detector:train_detector",
        "captioner": f"{CORE}.training.nano.captioner:train_captioner",
    },
)
