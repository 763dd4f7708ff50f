"""One training loop for every method, its checkpoints, and what is done with a finished run: load, sample, evaluate."""
