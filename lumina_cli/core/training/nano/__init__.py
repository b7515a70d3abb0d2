"""Training the small components of nano."""
