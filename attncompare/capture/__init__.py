"""How tensors are recorded on their way through a model."""
