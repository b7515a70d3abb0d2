"""`lumina bench`: measurements of speed and error."""

from lumina_cli.cli.bench.attention import app

__all__ = ["app"]
