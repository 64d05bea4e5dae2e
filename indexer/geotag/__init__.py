"""Positions for photos that have none: a table or XMP sidecars."""
