"""Inference: batches of sequences of any lengths, packed without padding."""
