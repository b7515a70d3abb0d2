"""Model folders: find them by name, and read their settings."""
