"""Files written whole or not at all, here or at a URL; names that are safe for files; specs read from TOML."""
