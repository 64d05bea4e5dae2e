"""Photo files: finding them below folders, reading them, and what EXIF, names and tables say of them."""
