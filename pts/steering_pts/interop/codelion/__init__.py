"""The data sets of codelion/pts, version 1 and 2, in both directions."""
