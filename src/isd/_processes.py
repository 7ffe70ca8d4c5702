"""Which of several training processes this one is."""

from __future__ import annotations

import sys


def process_rank() -> int:
    """Rank of this process among those that train together; 0 where it is alone.

    Known once ``torch.distributed`` has started, which it does with the first training in several processes. torch is not
    imported for the question: who has not imported it does not train.

    Examples
    --------
    >>> process_rank()
    0
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0
    return int(distributed.get_rank())
