"""Generation settings that other programs store in images: infotexts, JSON records and graphs of nodes."""
