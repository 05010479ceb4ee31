"""Federated training with Flower that no client can break, stall or impersonate.

`RobustStrategy` stands where Flower's `FedAvg`, `FedMedian` or `Krum` stood. It needs
Flower: `pip install '.[flower]'`, from a checkout.
"""

from byzjax.integrations.flower.nodes import NodeHistory

try:
    from byzjax.integrations.flower.strategy import RobustStrategy
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] != "flwr":
        raise
    raise ModuleNotFoundError(
        "byzjax.integrations.flower needs Flower, which is not installed: "
        "pip install '.[flower]', from a checkout",
        name="flwr",
    ) from error

__all__ = ["NodeHistory", "RobustStrategy"]
