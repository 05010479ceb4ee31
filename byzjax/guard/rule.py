"""The link that keeps the mean and watches: `guard`."""

import jax

from byzjax import base, checks, loops
from byzjax.aggregators import claims
from byzjax.aggregators.mean import mean
from byzjax.base import Aggregator
from byzjax.guard import account
from byzjax.numerics import stacked


def guard(
    rule: Aggregator,
    num_workers: int,
    *,
    false_alarms: float = 1e-6,
    probation: int = 1000,
    own_level: int | None = None,
    window: int = 1024,
) -> Aggregator:
    base.check_aggregator("guard", rule)
    terms = account.Terms(num_workers, false_alarms, probation, own_level, window)
    m = num_workers
    plain = mean()

    def check(given):
        if given != m:
            raise ValueError(
                "guard needs updates of the number of workers in its account, got "
                f"{given} and num_workers={m}"
            )
        rule.check(given)

    def init(params):
        return account.first(terms, rule.init(params))

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights("guard", weights)
        check(checks.num_workers(updates))
        seen = stacked.geometry(jax.lax.stop_gradient(updates), present=present)
        serves, state = account.watched(terms, state, seen)

        def robustly():
            return rule.inside(
                updates, state.rule_state, params, present=present, **extra
            )

        def plainly():
            out, _ = plain.inside(updates, plain.init(params), present=present)
            return out, state.rule_state

        out, rule_state = loops.cond(serves, robustly, plainly)
        return out, state._replace(rule_state=rule_state)

    return base.around(rule, init, update, check=check)
