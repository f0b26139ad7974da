"""Golden numbers of eight small models: stored, computed again and compared."""
