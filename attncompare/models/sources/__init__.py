"""Where the models come from: one file for each library."""
