"""What Byzantine workers send: `byzjax.attacks.alie()` and the rest, one a file.

Every factory returns a `byzjax.Attack`. Give it to `byzjax.trainer(attack=...)`, put it
into an `optax.chain` in front of a rule (with `num_byzantine`), or `apply` it once to a
stack.
"""

from byzjax.attacks.adaptive import adaptive
from byzjax.attacks.alie import alie
from byzjax.attacks.anti_cge import anti_cge
from byzjax.attacks.bit_flips import bit_flips
from byzjax.attacks.constant import constant, infinity, nan
from byzjax.attacks.fang import fang
from byzjax.attacks.free_rider import FreeRiderState, free_rider
from byzjax.attacks.gaussian import gaussian
from byzjax.attacks.intermittent import intermittent
from byzjax.attacks.ipm import ipm
from byzjax.attacks.mimic import MimicState, mimic
from byzjax.attacks.min_max import min_max
from byzjax.attacks.min_sum import min_sum
from byzjax.attacks.optimized import optimized
from byzjax.attacks.random_garbage import random_garbage
from byzjax.attacks.rop import RopState, rop
from byzjax.attacks.search import SearchState
from byzjax.attacks.sign_flip import scaled_sign_flip, sign_flip
from byzjax.attacks.small_perturbation import small_perturbation

__all__ = [
    "FreeRiderState",
    "MimicState",
    "RopState",
    "SearchState",
    "adaptive",
    "alie",
    "anti_cge",
    "bit_flips",
    "constant",
    "fang",
    "free_rider",
    "gaussian",
    "infinity",
    "intermittent",
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
