"""Fusion-X: make one language model learn what several others know.

The packages lie at the repository's top, where a person looks for them; here are links to them, so that one import
name, `fusionx`, holds everything for Python, type checkers and the wheel alike.
"""
