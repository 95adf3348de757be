"""The figures of the reports as SVG texts.

`canvas` holds what all of them share.
"""
