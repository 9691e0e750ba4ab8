"""Sparse layers: which layers become sparse, what they compute, and back."""
