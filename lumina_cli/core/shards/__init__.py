"""Shards: plain webdataset tars with an index, a manifest and selections."""
