"""Training under attack: `trainer`.

`trainer.py` has the step as its docstring's formula, `phases.py` its phases one by
one, `setup.py` what they read, checked, and `workers.py` how the workers share the
device.
"""

from byzjax.training.state import Metrics, Trainer, TrainState, WorkerMetrics
from byzjax.training.trainer import trainer

__all__ = ["Metrics", "TrainState", "Trainer", "WorkerMetrics", "trainer"]
