"""Trainer: what it calls, what it saves, what it pushes."""
