"""Comparing and scoring captions."""
