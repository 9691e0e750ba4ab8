"""Pruning a trained model in one pass over a few examples, without training: `prune`."""
