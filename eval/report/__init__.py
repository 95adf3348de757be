"""The report: its inputs, its numbers, the verdict in words, and the pages.

`tables` and `figures` hold what the pages show.
"""
