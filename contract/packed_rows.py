"""What transformers is told of packed rows, so that it does not ask the device.

To build a mask, transformers reads off the positions whether a row holds several texts, in every forward pass: the host
waits until the device has finished all it was given, and gives it nothing meanwhile. Callers know the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def packed_rows_found_by(find: Callable[[Any], Any]) -> Iterator[None]:
    """Forward passes within take `find` for `masking_utils.find_packed_sequence_indices`; one thread at a time.

    Args:
        find: from the positions, int64 [B, L], to each token's text in its row, int64 [B, L]; None: one text per row.
    """
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = find  # type: ignore[assignment]
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before
