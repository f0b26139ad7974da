"""Models: loaded by name or wrapped, with what each says of its images, its structure and its weights."""
