"""The numbers that rules are timed on, for processes with JAX and without."""

import numpy as np


def assumed_byzantine(m: int) -> int:
    """f, the most that Krum can bear, for all rules."""
    return (m - 3) // 2


def stack(m: int, d: int) -> np.ndarray:
    """Random rows around a common one, as gradients are: `[m, d]` float32."""
    draw = np.random.default_rng(0)
    center = draw.standard_normal(d, dtype=np.float32)
    return center + draw.standard_normal((m, d), dtype=np.float32)
