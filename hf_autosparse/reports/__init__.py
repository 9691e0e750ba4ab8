"""What is sparse, how much, and what it costs."""
