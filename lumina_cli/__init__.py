"""One toolkit for the whole life of a Lumina-Image 2.0 model: caption, shard, train, sample, eval, bench."""

__version__ = "0.1.0"


def load(model: str = "auto", **settings):
    """Return a pipeline that draws: `load("nano")("a red car left of a blue ball", seed=7)` -> PIL images."""
    from lumina_cli.core.sampling import load_pipeline

    return load_pipeline(model, **settings)
