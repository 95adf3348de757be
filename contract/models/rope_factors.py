"""The stretched rotary frequencies of Llama 3.1 and later, which a GGUF file keeps as a tensor and transformers drops.

Without them such a model still runs, and is another one at every position.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusionx.contract.models.gguf_header import GgufHeader

FACTORS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all Llamas from 3.1 on; the factor is the largest of the file's."""


def llama3_parameters(header: GgufHeader, rope: dict[str, Any], head_dim: int) -> dict[str, Any] | None:
    """The config's `rope_parameters` that give the file's factors; None where it has none, or no such ones."""
    tensor = header.tensor(FACTORS)
    if tensor is None or tensor.kind != "F32":
        return None
    stated = np.fromfile(header.path, "<f4", tensor.values, offset=tensor.start)
    found = {**LLAMA3, "rope_type": "llama3", "rope_theta": float(rope["rope_theta"]), "factor": float(stated.max())}
    expected = llama3_factors(found, head_dim)
    return found if expected.shape == stated.shape and np.allclose(expected, stated, rtol=1e-4) else None


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """By what the wavelength of each pair of dimensions is stretched: float64 [head_dim / 2].

    Wavelengths that fit `high_freq_factor` times and more into the original context stay, those that fit fewer than
    `low_freq_factor` times are stretched by the whole factor, and between the two frequencies are interpolated.
    """
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((rope["original_max_position_embeddings"] / waves - low) / (high - low)).clip(0, 1)
    return 1 / ((1 - kept) / rope["factor"] + kept)
