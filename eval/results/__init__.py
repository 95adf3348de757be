"""What evaluations leave to read, and how two of them are compared.

Evaluation files, benchmark scores, statistics of differences, and knowledge interference.
"""
