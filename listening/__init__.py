"""What hear.py stands on: a trained run, loaded once, that predicts faces from recordings."""
