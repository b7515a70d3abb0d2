"""Sampling: latents from a network and a plan; pictures from a model folder; rows with an image from rows."""

import gc
from importlib import import_module

__all__ = [
    "Opening",
    "Pipeline",
    "Wish",
    "draw",
    "draw_again_opened",
    "draw_latents",
    "draw_rows",
    "explain_rows",
    "load_pipeline",
    "read_split",
    "write_gallery",
]

_MODULES = {
    "Opening": "model_options",
    "Pipeline": "pipeline",
    "Wish": "request",
    "draw": "loading",
    "draw_again_opened": "loading",
    "draw_latents": "latents",
    "draw_rows": "runner",
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
