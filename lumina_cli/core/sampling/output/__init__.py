"""What sampling writes: file names, metadata, grids, sheets and galleries."""
