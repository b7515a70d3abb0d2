"""Evaluation: prompts, what judges see in pictures, the rules of a benchmark, and scores."""
