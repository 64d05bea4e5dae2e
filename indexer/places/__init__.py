"""Which photos show the same place, its neighbourhood, its surroundings."""
