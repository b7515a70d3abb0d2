"""Toolkit for Lumina-Image 2.0: captioning, sharding, training, sampling, evaluation and benchmarks."""

__version__ = "0.1.0"


def load(model: str = "auto", **settings):
    """Load a model and return a pipeline that generates images.

    `load("nano")("a red car left of a blue ball", seed=7)` returns a list of PIL images.

        model      nano, lumina-image-2, neta-lumina, netayume-lumina, auto, a model or run folder, a weight
                   file, or a hub id
        settings   device: "cpu", "cuda"... (default: a GPU if there is one); dtype: of the network (default:
                   float32 for a small network, else bfloat16 if the device supports it); frozen: a model that
                   provides the other components if `model` is a transformer alone
        returns    a `Pipeline`

    Raises:
        UsageError: if `model` is not a known name, a folder or a hub id.
        LuminaError: if a component of the model is missing, damaged or does not fit the others.
    """
    from importlib import import_module  # by name: image metadata imports the version from this module

    return import_module("lumina_cli.core.sampling.pipeline").load_pipeline(model, **settings)
