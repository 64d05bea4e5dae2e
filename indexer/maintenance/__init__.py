"""Backup, restore and check of an index."""
