"""What is minimised (eq. 4-10): the teacher of every position, the selection network, and the losses.

Pure functions and small modules; no (batch, length, vocabulary) tensor ever exists.
"""
