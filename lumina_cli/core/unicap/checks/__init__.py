"""Rules that reject a bad caption."""
