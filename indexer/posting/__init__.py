"""Adding and removing single photos while an index is in use."""
