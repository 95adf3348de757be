"""Documents of a corpus, split by split: local files behind any path, or a data set of the hub.

Others use `documents`, and `check_corpus` of `files`.
"""
