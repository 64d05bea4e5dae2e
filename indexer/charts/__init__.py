"""Charts as SVG, for the report of an evaluation and the curve of a training run."""
