"""The target model as the trainer sees it, and its low-rank adapters.

Hidden states from a trunk, final logits from a head.
"""
