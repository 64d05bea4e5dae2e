"""`loci index` from end to end, and what it will cost."""
