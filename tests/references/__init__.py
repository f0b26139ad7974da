"""Every formula of the catalogue written down again: float64, plain torch and loops, nothing taken from the package.

Tests compare the package with these; `benchmarks/conformance.py` tabulates by how much they differ.
"""
