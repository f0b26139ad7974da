"""The small training loop behind the demo models."""
