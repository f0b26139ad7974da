"""Train a classifier on images, resumably: the loop, its recipes, the data, and what `attncompare train` runs."""
