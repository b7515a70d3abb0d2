"""LoRA: file dialects, factors, and merging into the network."""
