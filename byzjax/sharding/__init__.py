"""Rules and training on many devices, at the price of an all-reduce.

`layout.py` says where workers lie on a mesh, `doors.py` has the way from workers to
coordinates and back, `states.py` how rules' states are kept between steps, `region.py`
how Explicit meshes are served, `way.py` the way of all that goes with a stack, and
`aggregate.py` a rule on it; `loading.py` has each process feed its own workers. The
passes that know of devices are those of `numerics`.

Processes: `starting.py` has them find each other, at `meeting.py`, and `agreeing.py`
says what differs between them. `survivors.py` trains on when some die: `runner.py` is
the loop, `programs.py` what it compiles and how a state goes from mesh to mesh by way
of the host, and `runtime.py` all that JAX calls unstable. `checkpoints.py` has states
on disk.
"""

from byzjax.sharding.aggregate import aggregate
from byzjax.sharding.agreeing import agree
from byzjax.sharding.checkpoints import Checkpoints
from byzjax.sharding.layout import Layout
from byzjax.sharding.loading import place
from byzjax.sharding.runner import Run, TooFewWorkers
from byzjax.sharding.starting import start, stop
from byzjax.sharding.survivors import run

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
