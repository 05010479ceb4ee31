"""A little is enough, "little": just inside the spread of the honest messages."""

import statistics
from typing import Literal

import jax.typing
import numpy as np

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.attacks.lift import Direction

Quantile = Literal["honest", "all"]


def alie(
    z: jax.typing.ArrayLike | None = None,
    *,
    direction: Direction = "negative",
    ddof: int = 1,
    quantile: Quantile = "honest",
    num_byzantine: int | None = None,
) -> Attack:
    r"""A little is enough (ALIE): just inside the honest spread, in every coordinate.

    .. math:: b_i = \mu \mp z \sigma, \qquad
      z = \Phi^{-1}\Big(\frac{h - s}{h}\Big)
      \ \text{or}\ \Phi^{-1}\Big(\frac{m - s}{m}\Big), \quad
      s = \lfloor m/2 \rfloor + 1 - f

    with μ and σ the mean and standard deviation of the honest messages per coordinate,
    h = m − f, and s the honest workers that must lie farther out for the Byzantine
    ones to be taken for the majority.

    Conventions: the CTMA paper and the published paper (NeurIPS) use μ − zσ, ddof 1 and
    the quantile among honest workers, the defaults here; the quantile among all workers
    is the first arXiv version's and common in other code. ByzFL uses z = 1.5,
    "positive", ddof 1. For few attackers (s > h/2) z is negative, as in the papers.

    Args:
      z: the strength; may be traced. None: from m and f, on the host.
      direction: "negative" for μ − zσ, "positive" for μ + zσ.
      ddof: σ divides by h − ddof; 0 or 1.
      quantile: "honest" or "all", the two formulas of z; read when z is None only.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a z that is not finite, another word, another ddof; at trace time no
        more than ddof honest workers, or no z: m and f put the quantile outside (0, 1),
        as for f >= m/2, where the attackers need no disguise.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [0.0]])
      >>> print(byzjax.attacks.alie(1.5).apply(rows, num_byzantine=1).ravel())
      [1.  2.  3.  0.5]

    Reference:
      Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For
      Distributed Learning, 2019, https://arxiv.org/abs/1902.06156
    """
    sign = lift.sign_of("alie", direction)
    checks.word("alie", ("honest", "all"), quantile=quantile)
    _check_ddof("alie", ddof)
    if z is not None:
        z = lift.any_number("alie", z=z)

    def message(honest, f):
        h = checks.num_workers(honest)
        lift.check_spread("alie", honest, ddof)
        strength = _strength(h, f, quantile) if z is None else z
        mu = lift.mean(honest)
        sigma = lift.std(honest, mu, ddof=ddof)
        return lift.shifted(mu, sign * strength, sigma)

    return lift.one_message(message, num_byzantine=num_byzantine)


def _check_ddof(name: str, ddof: int) -> None:
    if (
        isinstance(ddof, bool)
        or not isinstance(ddof, int | np.integer)
        or ddof not in (0, 1)
    ):
        raise ValueError(f"{name} needs ddof to be 0 or 1, got ddof={ddof!r}")


def _strength(h: int, f: int, quantile: Quantile) -> float:
    """z from the numbers of workers, on the host."""
    m = h + f
    supporters = m // 2 + 1 - f
    of = h if quantile == "honest" else m
    if not 0 < of - supporters < of:
        raise ValueError(
            "alie needs 0 < supporters < workers for z, with supporters = "
            f"num_workers // 2 + 1 - num_byzantine = {supporters} of {of} workers, got "
            f"num_workers={m} and num_byzantine={f}: give z instead"
        )
    return statistics.NormalDist().inv_cdf((of - supporters) / of)
