"""The command line: one command per stage, `run` for all of them, and what reports on a run.

On top of everything else; imports nothing heavy before a command is chosen.
"""
