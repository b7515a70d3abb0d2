"""`lumina sample`: generate images from prompts."""

from lumina_cli.cli.sample.command import sample

__all__ = ["sample"]
