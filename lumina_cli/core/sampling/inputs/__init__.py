"""Inputs of sampling: notes on prompts, captions as prompts, lists of seeds, values from Python."""
