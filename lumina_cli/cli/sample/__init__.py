"""`lumina sample`: prompts in, images out."""

from lumina_cli.cli.sample.command import sample

__all__ = ["sample"]
