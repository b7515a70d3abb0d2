"""The frozen encoders around the transformer: text features and image latents."""
