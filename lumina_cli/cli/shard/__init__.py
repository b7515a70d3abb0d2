"""`lumina shard`: pack, inspect, score, select and report on shards."""

from lumina_cli.cli.shard import annotate, curate, report
from lumina_cli.cli.shard.pack import app

__all__ = ["annotate", "app", "curate", "report"]
