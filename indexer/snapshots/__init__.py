"""A snapshot: its manifest, and the vectors that a search runs on, exact or compressed."""
