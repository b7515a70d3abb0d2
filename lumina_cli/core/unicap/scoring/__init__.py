"""Scores of captions against their images."""
