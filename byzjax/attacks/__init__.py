"""What Byzantine workers send: `byzjax.attacks.alie()` and the rest.

Every factory returns a `byzjax.Attack`. Give it to `byzjax.trainer(attack=...)`, put it
into an `optax.chain` in front of a rule (with `num_byzantine`), or `apply` it once to a
stack.
"""

from byzjax.attacks.noise import gaussian, infinity, nan
from byzjax.attacks.simple import alie, ipm, sign_flip

__all__ = ["alie", "gaussian", "infinity", "ipm", "nan", "sign_flip"]
