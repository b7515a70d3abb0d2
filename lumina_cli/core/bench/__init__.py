"""Benchmarks of kernels, network calls, pipelines and shard writers."""
