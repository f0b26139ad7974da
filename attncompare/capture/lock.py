"""One explanation at a time: hooks, modes and PyTorch's own switches belong to the whole process."""

import threading

LOCK = threading.RLock()
"""Held while a model is probed, captured or explained; other threads wait."""
