"""Scores: feature extractors, fidelity (FID, KID, IS, precision, recall, density, coverage) and how sure it is, copies
of training data, path length, modes of point sets and of stacked digits, and speed.

``measure`` sees uint8 images, points and callables, never a method, so no method grades itself.
"""
