"""Before a run: a first config, and what can be known at once of a config and of the machine.

Nothing here loads weights or makes a unit of work.
"""
