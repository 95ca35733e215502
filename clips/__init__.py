"""Clips and photos: how the material is fetched, and what is extracted from it. Never imports TensorFlow."""
