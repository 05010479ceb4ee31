"""Rules and training on many devices, at the price of an all-reduce.

`layout.py` says where workers lie on a mesh, `doors.py` has the way from workers to
coordinates and back, `states.py` how rules' states are kept between steps, `region.py`
how Explicit meshes are served, `way.py` the way of all that goes with a stack, and
`aggregate.py` a rule on it; `loading.py` has each process feed its own workers. The
passes that know of devices are those of `numerics`.
"""

from byzjax.sharding.aggregate import aggregate
from byzjax.sharding.agreeing import agree
from byzjax.sharding.checkpoints import Checkpoints
from byzjax.sharding.layout import Layout
from byzjax.sharding.loading import place
from byzjax.sharding.starting import start, stop
from byzjax.sharding.survivors import Run, TooFewWorkers, run

__all__ = [
    "Checkpoints",
    "Layout",
    "Run",
    "TooFewWorkers",
    "aggregate",
    "agree",
    "place",
    "run",
    "start",
    "stop",
]
