"""Weights of public reference implementations, read into this project's networks."""
