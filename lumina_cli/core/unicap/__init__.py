"""Unified captioner: captions of a picture at four levels, in five languages, each checked."""
