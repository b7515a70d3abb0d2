"""`lumina eval`: benchmarks, comparisons and captions."""

from lumina_cli.cli.eval import captions
from lumina_cli.cli.eval.run import app

__all__ = ["app", "captions"]
