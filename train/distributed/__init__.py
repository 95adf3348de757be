"""Several processes: which of them this is, and every collective of the trainer.

`ranks` needs no torch.
"""
