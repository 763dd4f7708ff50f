"""Scores: feature extractors, fidelity (FID, KID, IS, precision and recall), modes of point sets, and speed.

``measure`` sees uint8 images, points and callables, never a method, so no method grades itself.
"""
