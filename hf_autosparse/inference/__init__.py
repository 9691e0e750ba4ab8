"""A trained model made fast."""
