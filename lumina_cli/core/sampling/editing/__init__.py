"""Sampling that starts from an image: img2img, replay and attention maps."""
