"""`loci train` from photos to a model file."""
