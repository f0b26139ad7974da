"""The metrics: one pure function per file; the curve engine and the protocols beside them."""
