"""Sampling: latents from a network and a plan; pictures from a model folder; rows with an image from rows."""

import gc
from importlib import import_module

__all__ = [
    "ModelOptions",
    "Pipeline",
    "SamplingRequest",
    "draw_latents",
    "explain_rows",
    "generate",
    "generate_rows",
    "load_pipeline",
    "read_split",
    "replay",
    "write_gallery",
]

_MODULES = {
    "ModelOptions": "model_options",
    "Pipeline": "pipeline",
    "SamplingRequest": "request",
    "generate": "loading",
    "replay": "loading",
    "draw_latents": "latents",
    "generate_rows": "runner",
    "explain_rows": "explain",
    "load_pipeline": "pipeline",
    "read_split": "batching",
    "write_gallery": "output.gallery",
}


def __getattr__(name: str):
    """Import a name when it is asked for: a training loop wants `draw_latents` without the encoders."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    collecting = gc.isenabled()
    gc.disable()  # nothing becomes garbage while modules load, and looking for it takes a fifth of the time
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    finally:
        if collecting:
            gc.enable()
