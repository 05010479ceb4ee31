"""The data, the model, and how one client trains it: NumPy only."""

import numpy as np
from flwr.app import Array, ArrayRecord
from sklearn.datasets import load_digits

HIDDEN, CLASSES, TEST = 32, 10, 397


def data() -> tuple[np.ndarray, np.ndarray]:
    """All 1 797 images of 64 pixels in [0, 1] and their digits, in random order."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    return (images[order] / 16).astype(np.float32), digits[order]


def client_data(client: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """What one client has: some digits often and others seldom."""
    images, digits = (x[TEST:] for x in data())
    draws = np.random.default_rng(1)
    owners = np.empty(len(digits), int)
    for digit in range(CLASSES):
        shares = draws.dirichlet(np.full(clients, 2.0))
        mine = digits == digit
        owners[mine] = draws.choice(clients, mine.sum(), p=shares)
    return images[owners == client], digits[owners == client]


def test_data() -> tuple[np.ndarray, np.ndarray]:
    """What no client has."""
    images, digits = data()
    return images[:TEST], digits[:TEST]


def initial_model() -> dict[str, np.ndarray]:
    """One hidden layer, and how many steps a client took, an integer."""
    draws = np.random.default_rng(2)
    shapes = {"hidden.weight": (64, HIDDEN), "output.weight": (HIDDEN, CLASSES)}
    model = {
        name: (draws.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in shapes.items()
    }
    return {
        **model,
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.bias": np.zeros(CLASSES, np.float32),
        "steps": np.zeros((), np.int64),
    }


def forward(model, images):
    hidden = np.maximum(images @ model["hidden.weight"] + model["hidden.bias"], 0)
    return hidden, hidden @ model["output.weight"] + model["output.bias"]


def train(model, images, digits, *, epochs=2, batch=16, rate=0.2, seed=0):
    """Plain SGD on the cross-entropy."""
    model = {name: value.copy() for name, value in model.items()}
    draws = np.random.default_rng(seed)
    for _ in range(epochs):
        order = draws.permutation(len(digits))
        for start in range(0, len(digits), batch):
            chosen = order[start : start + batch]
            x, y = images[chosen], digits[chosen]
            hidden, logits = forward(model, x)
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            shares[np.arange(len(y)), y] -= 1
            error = (shares / len(y)).astype(np.float32)
            back = (error @ model["output.weight"].T) * (hidden > 0)
            model["output.weight"] -= rate * hidden.T @ error
            model["output.bias"] -= rate * error.sum(0)
            model["hidden.weight"] -= rate * x.T @ back
            model["hidden.bias"] -= rate * back.sum(0)
            model["steps"] = model["steps"] + 1
    return model


def accuracy(model) -> float:
    """Share of the test images that the model names rightly; 0 if it is broken."""
    images, digits = test_data()
    with np.errstate(all="ignore"):
        logits = forward(model, images)[1]
    if not np.isfinite(logits).all():
        return 0.0
    return float(np.mean(logits.argmax(1) == digits))


def to_record(model) -> ArrayRecord:
    return ArrayRecord({k: Array(np.asarray(v)) for k, v in model.items()})


def from_record(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}
