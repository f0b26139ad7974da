"""Changed backward rules: one engine, and a table of rules for each method."""
