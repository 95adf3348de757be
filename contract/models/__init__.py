"""Models by the path that a config gives: folder, hub id or GGUF file, each as a folder that transformers loads.

What a GGUF file says of itself, what is made of it, and the proof that nothing was misread.
"""
