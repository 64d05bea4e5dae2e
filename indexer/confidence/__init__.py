"""Calibrated confidence, fitted on the index's own photos."""
