"""Documents -> chunks that fit every tokenizer of the run, and the stage that writes them.

Tokens are counted piece by piece where every tokenizer provably never joins two pieces, else by encoding.
"""
