"""Tokenizers: loaded, identified, and asked for ids, the bytes that every token stands for, and end offsets.

All that the stages know about tokens comes from here.
"""
