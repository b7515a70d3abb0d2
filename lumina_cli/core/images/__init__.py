"""Image files: validated decoding, headers, color profiles, metadata, sizes and crops."""
