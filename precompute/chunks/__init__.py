"""Documents -> chunks that fit every tokenizer of the run, and the stage that writes them.

Cuts lie only where every tokenizer provably puts a token boundary, so that tokens can be counted piecewise.
"""
