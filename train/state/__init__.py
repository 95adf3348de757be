"""What a training keeps on disk: checkpoints, the exported model with its card, the result.

Everything is written whole, and a mark last.
"""
