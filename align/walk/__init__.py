"""The walk: a source's probability of every next target token, along the text's own source tokens.

`part_walk` is the way in: it looks up what the kernel asks for and runs it.
"""

RULES = 2
"""Goes up when the walk comes to say something else of the same shards: what it said before is made anew then."""
