"""Overlays: captions, scores and other fields added to shards without rewriting them."""
