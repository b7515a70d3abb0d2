"""The inference path: sequences of all lengths packed without padding."""
