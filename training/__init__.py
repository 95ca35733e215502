"""Training: batches, losses, steps, the closed form, the face decoder, and the folder of a run."""
