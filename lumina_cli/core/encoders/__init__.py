"""The frozen parts around the network: text features and picture latents."""
