"""Photo files: finding them, reading them, and their metadata from EXIF, names and tables."""
