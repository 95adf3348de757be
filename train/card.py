"""The model card of an exported target, written from the job's own facts."""

from __future__ import annotations

from train.checkpoint import TrainState
from train.config import TrainJob


def model_card(job: TrainJob, state: TrainState, which: str) -> str:
    """Markdown with the front matter that model hubs read."""
    sources = [name for name in job.aligned if name != job.target]
    method = job.method
    facts = {
        "Method": f"{job.method_name} (teacher {method.teacher}, vocabulary map {method.map}, tail {method.tail})",
        "Losses": f"{method.lambda_lm} L_lm + {method.lambda_fuse} L_fuse + {method.lambda_feed} L_feed"
        f" + {method.lambda_select} L_select",
        "Target": f"{job.target_path} (revision {job.target_revision or 'local'}, weights {job.target_weights})",
        "Sources": ", ".join(sources) or "none",
        "Optimizer": f"AdamW, learning rate {job.optimizer.learning_rate}, {job.optimizer.epochs} epochs, "
        f"batches of {job.optimizer.batch_size} chunks, seed {job.seed}",
        "Step": f"{state.step} ({which}); validation bits per byte at its best {state.best_bits_per_byte:.4f}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
base_model: {job.target_path}
library_name: transformers
tags:
- fusion-x
- knowledge-fusion
---

# {job.target} after {job.method_name}

Trained with Fusion-X: the target learned from the stored next-token distributions of its sources. The architecture
and the number of parameters are the target's own.

| | |
|---|---|
{rows}
"""
