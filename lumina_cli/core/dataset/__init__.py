"""Training data: from shards or other sources to batches."""
