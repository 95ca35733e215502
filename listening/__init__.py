"""What hear.py stands on: a run that is loaded and listens to recordings."""
