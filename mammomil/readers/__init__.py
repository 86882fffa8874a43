"""One file per public data set: its own format in, the index of `mammomil.index` out."""
