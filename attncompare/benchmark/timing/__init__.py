"""The timing pass: latency and memory of every method, in a fresh process for each model."""
