"""Updating a finished folder of shards: only shards with added, changed or removed samples are rewritten."""
