"""Training: set-up, batches, losses, steps and epochs, the closed form, the face decoder, and the folder of a run."""
