"""Curation: scores, duplicates, filters and selections of samples."""
