"""What the studies found, as figures and files: one file per study, each a function of the study's result."""
