"""Shards of other tools: tars without an index."""
