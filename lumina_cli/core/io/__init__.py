"""Files and rows: JSON Lines, local and remote file systems, atomic writes, process pools, HTML pages."""
