"""Following a moving camera through an index."""
