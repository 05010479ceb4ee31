"""What Byzantine workers send: `byzjax.attacks.alie()` and the rest.

Every factory returns a `byzjax.Attack`. Give it to `byzjax.trainer(attack=...)`, put it
into an `optax.chain` in front of a rule (with `num_byzantine`), or `apply` it once to a
stack.
"""

from byzjax.attacks.mimic import MimicState, mimic
from byzjax.attacks.noise import (
    FreeRiderState,
    constant,
    free_rider,
    gaussian,
    infinity,
    nan,
    random_garbage,
)
from byzjax.attacks.omniscient import anti_cge, min_max, min_sum, small_perturbation
from byzjax.attacks.search import SearchState, adaptive, optimized
from byzjax.attacks.simple import alie, ipm, scaled_sign_flip, sign_flip
from byzjax.attacks.tailored import RopState, fang, rop

__all__ = [
    "FreeRiderState",
    "MimicState",
    "RopState",
    "SearchState",
    "adaptive",
    "alie",
    "anti_cge",
    "constant",
    "fang",
    "free_rider",
    "gaussian",
    "infinity",
    "ipm",
    "mimic",
    "min_max",
    "min_sum",
    "nan",
    "optimized",
    "random_garbage",
    "rop",
    "scaled_sign_flip",
    "sign_flip",
    "small_perturbation",
]
