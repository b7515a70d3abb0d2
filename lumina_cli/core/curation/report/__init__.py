"""Reports on a dataset: statistics and contact sheets."""
