"""The same training step as a PyTorch loop, as one would write it there.

One backward pass per worker and gradient, two gradients a step, each clipped; corrected
momentum, the attack, CTMA over the smoothed geometric median on the stacked vectors,
and the averaged query point. float32, the network and the constants of `step`.
"""

import importlib
import importlib.util
import statistics
from typing import Any

import numpy as np

from benchmarks.apart import QUEUED, Call

NUM_BYZANTINE = 8


def available() -> bool:
    return importlib.util.find_spec("torch") is not None


def _network(torch: Any) -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def _geometric_median(torch, rows, smoothing=0.1, num_iterations=3):
    center = torch.zeros_like(rows[0])
    for _ in range(num_iterations):
        weights = 1 / (rows - center).norm(dim=1).clamp(min=smoothing)
        center = (weights / weights.sum()) @ rows
    return center


def _ctma(torch, rows, f):
    distances = (rows - _geometric_median(torch, rows)).norm(dim=1)
    return rows[distances.argsort()[: len(rows) - f]].mean(0)


def _little_strength(m, f):
    supporters = m // 2 + 1 - f
    return statistics.NormalDist().inv_cdf((m - f - supporters) / (m - f))


def call(
    data: tuple[np.ndarray, np.ndarray],
    attack: str,
    num_computed: int,
    threads: int | None,
    *,
    learning_rate: float = 0.1,
    max_norm: float = 2.0,
) -> Call:
    """The call of one step.

    Args:
      data: images `[m, b, 28, 28, 1]` and labels `[m, b]`.
      attack: "sign flip" or "little".
      num_computed: workers whose gradients are computed; under little those of the
        Byzantine ones are not needed, though a plain loop computes them.
      threads: of PyTorch; None is its default. One is faster for so small images.
      learning_rate: η, of w.
      max_norm: each gradient is scaled down to this norm.
    """
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    m, f = len(data[1]), NUM_BYZANTINE
    images = torch.from_numpy(np.moveaxis(data[0], -1, 2).copy()).to(device)
    labels = torch.from_numpy(data[1].astype(np.int64)).to(device)
    here, before = _network(torch).to(device), _network(torch).to(device)
    before.load_state_dict(here.state_dict())
    criterion = torch.nn.CrossEntropyLoss()
    to_vector = torch.nn.utils.parameters_to_vector
    iterate = to_vector(here.parameters()).detach().clone()
    momenta: list[Any] = [None] * m
    if threads is not None:
        torch.set_num_threads(threads)
    count = 0

    def gradient(network, worker):
        loss = criterion(network(images[worker]), labels[worker])
        grads = torch.autograd.grad(loss, list(network.parameters()))
        vector = torch.cat([g.reshape(-1) for g in grads])
        return vector * (max_norm / vector.norm()).clamp(max=1.0)

    def step():
        nonlocal iterate, count
        count += 1
        beta = max(round(1 / count, 3), 0.01)
        mixing = max(round(2 / (count + 1), 3), 0.01)
        for worker in range(num_computed):
            new, old = gradient(here, worker), gradient(before, worker)
            d = momenta[worker]
            momenta[worker] = new if d is None else new + (1 - beta) * (d - old)
        honest = torch.stack(momenta[: m - f])
        if attack == "sign flip":
            forged = -torch.stack(momenta[m - f :])
        else:
            strength = _little_strength(m, f)
            message = honest.mean(0) - strength * honest.std(0)
            forged = message.expand(f, -1)
        direction = _ctma(torch, torch.cat([honest, forged]), f)
        iterate = iterate - learning_rate * direction
        with torch.no_grad():
            at = to_vector(here.parameters())
            torch.nn.utils.vector_to_parameters(at, before.parameters())
            moved = at + mixing * (iterate - at)
            torch.nn.utils.vector_to_parameters(moved, here.parameters())

    if device == "cuda":
        return Call(step, wait=lambda _: torch.cuda.synchronize(), queued=QUEUED)
    return Call(step)
