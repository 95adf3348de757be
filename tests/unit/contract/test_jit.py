"""Kernels as machine code, and as plain Python for a debugger."""

import numba
import numpy as np
import pytest

from fusionx.contract.jit import compiled, fused, inlined, uncounted


def wrapped_product(values, factor):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for at in range(len(values)):
        total += values[at] * factor
    return total


@pytest.mark.parametrize("make", [compiled, uncounted, inlined, fused])
def test_without_compilation_a_kernel_computes_the_same(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    values, factor = np.array([3, 1 << 63, 7], np.uint64), np.uint64(0x9E3779B97F4A7C15)
    expected = sum(int(value) * int(factor) for value in values) % (1 << 64)
    assert int(make(wrapped_product)(values, factor)) == expected
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    plain = make(wrapped_product)
    assert not isinstance(plain, numba.core.registry.CPUDispatcher)
    assert int(plain(values, factor)) == expected


def test_of_an_inlined_function_there_is_one_version_for_all_whole_numbers_of_32_and_64_bits() -> None:
    @inlined
    def positive(number):  # type: ignore[no-untyped-def]
        return number > 0

    @uncounted
    def kernel(small, natural, large):  # type: ignore[no-untyped-def]
        return positive(small), positive(natural), positive(-7), positive(large)

    assert kernel(np.int32(-5), np.uint32(1 << 31), np.uint64(1 << 63)) == (False, True, False, True)
    assert sorted(str(kind) for (kind,) in positive.signatures) == ["int64", "uint64"]


def test_a_fused_product_is_rounded_once_with_its_sum_where_the_machine_can() -> None:
    @fused
    def next_to_one(value):  # type: ignore[no-untyped-def]
        return value * value - np.float32(1.0)

    @uncounted
    def kernel(value):  # type: ignore[no-untyped-def]
        return next_to_one(value)

    value = np.float32(1 + 2**-12)
    exact = float(value) ** 2 - 1.0
    assert kernel(value) in (np.float32(exact), value * value - np.float32(1.0))
    assert next_to_one.targetoptions["fastmath"] == {"contract"}
