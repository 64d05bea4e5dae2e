"""How sure an answer is, calibrated on the index's own photos."""
