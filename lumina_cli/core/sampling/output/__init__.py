"""Output of sampling: file names, metadata, grids, sheets and galleries."""
