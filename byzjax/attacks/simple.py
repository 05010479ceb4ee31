"""Attacks in closed form: a multiple of the honest mean, or the mean and the spread."""

import statistics
from typing import Literal

import jax
import jax.typing

from byzjax import base
from byzjax.attacks import lift
from byzjax.attacks.lift import Direction
from byzjax.base import Attack

Quantile = Literal["honest", "all"]


def sign_flip(
    *, of: Literal["own", "mean"] = "own", num_byzantine: int | None = None
) -> Attack:
    r"""Sign flip: the negative of an honest message.

    .. math:: b_i = -x_i \quad (\text{own}) \qquad\text{or}\qquad
      b_i = -\frac{1}{h} \sum_{j \text{ honest}} x_j \quad (\text{mean})

    with "own" each Byzantine worker follows the protocol and sends the negative of its
    message (the CTMA paper and its authors' code, Karimireddy et al.); with "mean" all
    send the negative of the honest mean (ByzFL). Equal to `ipm(1.0)` with "mean".

    Args:
      of: whose message is flipped. "own" reads the messages that the Byzantine workers
        would have sent; "mean" costs no Byzantine gradients.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: another word; `of="own"` where own messages are not known.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> print(byzjax.attacks.sign_flip().apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -5.]
      >>> flip = byzjax.attacks.sign_flip(of="mean")
      >>> print(flip.apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -2.]

    Reference:
      Li, Xu, Chen, Giannakis, Ling: RSA: Byzantine-Robust Stochastic Aggregation
      Methods for Distributed Learning from Heterogeneous Datasets, 2019,
      https://arxiv.org/abs/1811.03761; Dahan, Levy: Fault Tolerant ML, 2024,
      https://arxiv.org/abs/2405.14759
    """
    lift.choice("sign_flip", ("own", "mean"), of=of)
    if of == "mean":
        return ipm(1.0, num_byzantine=num_byzantine)

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        if own is None:
            raise ValueError(
                "sign_flip with of='own' needs the Byzantine workers' own messages, "
                "got own=None: use of='mean' where they are not computed"
            )
        return jax.tree.map(lambda x: -x, own), state

    return Attack(forge, needs_own=True, num_byzantine=num_byzantine)


def scaled_sign_flip(
    scale: jax.typing.ArrayLike = 1.0, *, num_byzantine: int | None = None
) -> Attack:
    r"""Scaled sign flip: the Byzantine messages cancel the honest ones.

    .. math:: b_i = -c\, \frac{h}{f} \cdot \frac{1}{h} \sum_{j \text{ honest}} x_j

    With c = 1 the plain mean of all messages is zero and an averaging server stands
    still; with c > 1 it moves backwards. Equal to `ipm(c * h / f)`.

    Args:
      scale: c >= 0; may be traced.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a negative or non-finite c.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> attack = byzjax.attacks.scaled_sign_flip()
      >>> print(attack.apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -4.]

    Reference:
      Xie, Koyejo, Gupta: Fall of Empires, 2020, https://arxiv.org/abs/1903.03936, with
      the strength that stops a mean.
    """
    base.check_number("scaled_sign_flip", scale=scale)

    def message(honest, f):
        ratio = base.num_workers(honest) / f

        def of_leaf(mu):
            return -(lift.number(scale, mu) * ratio * mu)

        return jax.tree.map(of_leaf, lift.mean(honest))

    return lift.one_message(message, num_byzantine=num_byzantine)


def ipm(
    scale: jax.typing.ArrayLike = 0.5, *, num_byzantine: int | None = None
) -> Attack:
    r"""Inner-product manipulation (IPM, "empire"): a negative multiple of the mean.

    .. math:: b_i = -\varepsilon \frac{1}{h} \sum_{j \text{ honest}} x_j

    A small ε hides among honest messages of large variance; ε > h/f turns the plain
    mean around. Libraries differ in the default only: 0.5 on the command line of the
    CTMA authors' code (the default here), 0.1 in its class, 2 in ByzFL.

    Args:
      scale: ε >= 0; may be traced, so that a sweep is one `vmap`.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a negative or non-finite ε.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> print(byzjax.attacks.ipm(0.5).apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -1.]

    Reference:
      Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
      Product Manipulation, 2020, https://arxiv.org/abs/1903.03936
    """
    base.check_number("ipm", scale=scale)

    def message(honest, f):
        return jax.tree.map(
            lambda mu: -(lift.number(scale, mu) * mu), lift.mean(honest)
        )

    return lift.one_message(message, num_byzantine=num_byzantine)


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
    lift.choice("alie", ("honest", "all"), quantile=quantile)
    _check_ddof("alie", ddof)
    if z is not None:
        lift.any_number("alie", z=z)

    def message(honest, f):
        h = base.num_workers(honest)
        lift.check_spread("alie", honest, ddof)
        strength = _alie_strength(h, f, quantile) if z is None else z
        mu = lift.mean(honest)
        sigma = lift.std(honest, mu, ddof=ddof)
        return lift.shifted(mu, sign * strength, sigma)

    return lift.one_message(message, num_byzantine=num_byzantine)


def _check_ddof(name: str, ddof: int) -> None:
    if ddof not in (0, 1):
        raise ValueError(f"{name} needs ddof to be 0 or 1, got ddof={ddof!r}")


def _alie_strength(h: int, f: int, quantile: Quantile) -> float:
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
