"""Clips and photos: where the material comes from and what is taken out of it. Never reaches TensorFlow."""
