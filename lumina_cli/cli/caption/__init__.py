"""`lumina caption`: images in, captions out."""

from lumina_cli.cli.caption.command import caption

__all__ = ["caption"]
