"""Convex problems with their smoothness and, by Newton's method, their optimum."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """The mean of loss(aᵢᵀx, yᵢ) + ridge/2 ‖x‖² over samples, with ‖aᵢ‖ = 1."""

    inputs: np.ndarray  # [n, d]
    targets: np.ndarray  # [n]
    losses: Callable[..., Any]  # (np or jnp, scores, targets) → one a sample.
    slopes: Callable[..., Any]  # Their derivatives by the score, in NumPy.
    curvatures: Callable[..., Any]
    smoothness: float  # L, of every sample's loss.
    ridge: float

    def loss(self, params: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Of one worker's batch ([b, d], [b])."""
        scores = jnp.dot(batch[0], params, precision="highest")
        data = jnp.mean(self.losses(jnp, scores, batch[1]))
        return data + self.ridge / 2 * jnp.sum(params**2)

    def value(self, x: np.ndarray) -> np.ndarray:
        """f in float64, [..., d] → [...]."""
        losses = self.losses(np, x @ self.inputs.T, self.targets).mean(-1)
        return losses + self.ridge / 2 * (x**2).sum(-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """∇f in float64, [..., d] → [..., d]."""
        slopes = self.slopes(x @ self.inputs.T, self.targets)
        return slopes @ self.inputs / len(self.inputs) + self.ridge * x

    def optimum(self) -> np.ndarray:
        """By Newton's method in float64, [d]."""
        x = np.zeros(self.inputs.shape[1])
        for _ in range(50):
            weights = self.curvatures(self.inputs @ x, self.targets)
            hessian = (self.inputs.T * weights) @ self.inputs / len(weights)
            hessian += self.ridge * np.eye(len(x))
            x = x - np.linalg.solve(hessian, self.gradient(x))
        if not np.linalg.norm(self.gradient(x)) < 1e-12:
            raise ValueError(f"Newton's method did not converge: gradient at {x}")
        return x


def _standardised(bunch: Any) -> np.ndarray:
    """Features of mean 0 and variance 1, each sample then scaled to norm 1."""
    inputs = (bunch.data - bunch.data.mean(0)) / bunch.data.std(0)
    return inputs / np.linalg.norm(inputs, axis=1, keepdims=True)


def _logistic() -> Problem:
    from sklearn import datasets

    bunch: Any = datasets.load_breast_cancer()
    ridge = 1e-3
    return Problem(
        inputs=_standardised(bunch),
        targets=2.0 * bunch.target - 1,
        losses=lambda xp, s, y: xp.logaddexp(0.0, -y * s),
        slopes=lambda s, y: -y / (1 + np.exp(y * s)),
        curvatures=lambda s, y: 1 / (2 + np.exp(s) + np.exp(-s)),
        smoothness=1 / 4 + ridge,
        ridge=ridge,
    )


def _least_squares() -> Problem:
    from sklearn import datasets

    bunch: Any = datasets.load_diabetes()
    return Problem(
        inputs=_standardised(bunch),
        targets=(bunch.target - bunch.target.mean()) / bunch.target.std(),
        losses=lambda xp, s, y: (s - y) ** 2 / 2,
        slopes=lambda s, y: s - y,
        curvatures=lambda s, y: np.ones_like(s),
        smoothness=1.0,
        ridge=0.0,
    )


# Data that come with scikit-learn: breast cancer (569 × 30) and diabetes (442 × 10).
PROBLEMS = {"logistic": _logistic, "least squares": _least_squares}


@functools.cache
def problem_of(name: str) -> tuple[Problem, np.ndarray]:
    """A problem and its optimum."""
    problem = PROBLEMS[name]()
    return problem, problem.optimum()
