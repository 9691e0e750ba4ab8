"""Metrics for `evaluate` that need no network and gather over processes."""
