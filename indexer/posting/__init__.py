"""Photos added and removed one at a time, beside runs."""
