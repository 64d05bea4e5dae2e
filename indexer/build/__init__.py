"""`loci index` and `loci plan`."""
