"""`lumina caption`: write captions of images."""

from lumina_cli.cli.caption.command import caption

__all__ = ["caption"]
