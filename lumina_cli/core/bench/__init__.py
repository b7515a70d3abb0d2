"""Measurements: kernels, network calls, whole pipelines and shard writers."""
