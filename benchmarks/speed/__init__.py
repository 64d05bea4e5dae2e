"""Time and memory, always as a ratio of two sides measured in one run."""
