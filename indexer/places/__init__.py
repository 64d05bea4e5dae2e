"""Which photos show the same place."""
