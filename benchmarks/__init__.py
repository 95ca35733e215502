"""Benchmarks and experiments: python -m benchmarks --help."""
