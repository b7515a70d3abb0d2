"""Training: recipes, the transformer's training loop, and the components of nano."""
