"""stub"""


class GuardReport: ...


class WorkerReport: ...


def guard_report(): ...
