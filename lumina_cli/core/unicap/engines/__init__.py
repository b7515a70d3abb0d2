"""What writes captions; each engine is a line of the CAPTIONERS table."""
