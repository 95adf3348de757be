"""In what products are computed."""

from __future__ import annotations

import pytest
import torch

from fusionx.train.loop.optimization import autocast_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("precision", "device", "stored", "has", "expected"),
    [
        ("auto", CPU, BF16, True, BF16),
        ("auto", CPU, BF16, False, None),
        ("auto", CPU, FP32, True, None),
        ("auto", CPU, torch.float16, True, None),
        ("auto", GPU, FP32, False, BF16),
        ("fp32", GPU, BF16, True, None),
        ("fp32", CPU, BF16, True, None),
        ("bf16", CPU, FP32, False, BF16),
    ],
)
def test_bf16_is_used_where_it_is_faster(
    precision: str, device: torch.device, stored: torch.dtype, has: bool, expected: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has, "amx_bf16": False})
    assert autocast_dtype(precision, device, stored) == expected
