"""The tables of the report as plain cells, without a word on how they look.

`sections` puts them in order.
"""
