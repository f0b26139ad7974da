"""Finding the parts of a module: what it supplies, and how that lies on the image."""
