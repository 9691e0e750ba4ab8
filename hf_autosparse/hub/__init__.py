"""A model's card and its way to the Hub."""
