"""Unified captioner: image captions at four levels and in several languages, each one checked."""
