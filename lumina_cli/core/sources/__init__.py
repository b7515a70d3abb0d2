"""Sources: where samples come from, and packing them into shards."""
