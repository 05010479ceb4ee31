"""Watching replicas: the mean as the update, and an account of every worker.

`rule.py` has the link of a chain, `account.py` what it remembers and how it judges, and
`report.py` the verdicts with the names of devices and processes.
"""

from byzjax.guarding.account import GuardState
from byzjax.guarding.report import GuardReport, WorkerReport, guard_report
from byzjax.guarding.rule import guard

__all__ = ["GuardReport", "GuardState", "WorkerReport", "guard", "guard_report"]
