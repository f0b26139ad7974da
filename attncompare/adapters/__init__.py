"""What each model library keeps where, as data."""
