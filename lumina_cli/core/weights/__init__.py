"""Weights on disk: safetensors files, lazy reading, LoRA files, fingerprints and run folders."""
