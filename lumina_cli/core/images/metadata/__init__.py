"""Metadata in image files: our own, and the settings of other programs: infotexts, JSON records, graphs."""
