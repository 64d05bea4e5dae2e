"""Snapshots: manifest, and the descriptors that are searched, exact or compressed."""
