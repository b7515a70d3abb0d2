"""Models by name: where a model folder is and what it contains."""
