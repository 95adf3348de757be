"""The trainings of a run: which there are, at which learning rate, and the processes that run them.

The training itself is `train`.
"""
