"""What the hostile client does to its honest reply, by name."""

import json
import os
import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

from digits import task


def on_model(change):
    """A kind that sends another model in place of its own."""

    def kind(content: Any, sent: ArrayRecord) -> None:
        new, old = (task.from_record(r) for r in (content["arrays"], sent))
        content["arrays"] = task.to_record(change(new, old))

    return kind


def on_floats(change):
    """A kind that changes each array of floats, given the one that was sent."""

    def each(new, old):
        return {
            k: change(new[k], old[k]) if new[k].dtype.kind == "f" else new[k]
            for k in new
        }

    return on_model(each)


def backwards(new, old):
    return (old - 10 * (new - old)).astype(new.dtype)


def bytes_of(make):
    """A kind that puts these bytes where its first array was."""

    def kind(content: Any, sent: ArrayRecord) -> None:
        record = content["arrays"]
        name, array = next(iter(record.items()))
        record[name] = Array(array.dtype, array.shape, array.stype, make(array.data))

    return kind


def header(shape: str):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


class Unreadable(Array):
    """Names a part that it does not have: whoever puts it together fails."""

    def deflate(self):
        body = {
            "dtype": self.dtype,
            "shape": self.shape,
            "stype": self.stype,
            "arraychunk_ids": [99],
        }
        return add_header_to_object_body(json.dumps(body).encode(), self)


Unreadable.__qualname__ = "Array"  # What it says that it is.


def unreadable(content: Any, sent: ArrayRecord) -> None:
    record = content["arrays"]
    name, array = next(iter(record.items()))
    record[name] = Unreadable(array.dtype, array.shape, array.stype, array.data)


def claims(examples):
    """A hostile model, and a number of examples that makes it count."""

    def kind(content: Any, sent: ArrayRecord) -> None:
        on_floats(backwards)(content, sent)
        content["metrics"]["num-examples"] = examples

    return kind


def metrics(content: Any, sent: ArrayRecord) -> None:
    content["metrics"]["another"] = 1.0


KINDS = {
    "none": lambda content, sent: None,
    "nan": on_floats(lambda new, old: np.full_like(new, np.nan)),
    "infinity": on_floats(lambda new, old: np.full_like(new, np.inf)),
    "huge": on_floats(lambda new, old: np.full_like(new, 1e30)),
    "backwards": on_floats(backwards),
    "noise": on_floats(
        lambda new, old: np.random.default_rng().normal(size=new.shape).astype("f4")
    ),
    "shape": on_floats(lambda new, old: new[..., None]),
    "dtype": on_floats(lambda new, old: new.astype(np.float64)),
    "extra": on_model(lambda new, old: {**new, "more": np.zeros(3, np.float32)}),
    "missing": on_model(lambda new, old: {"steps": new["steps"]}),
    "metric": metrics,
    "garbage": bytes_of(lambda data: b"PK\x03\x04" + bytes(len(data))),
    "enormous": bytes_of(lambda data: header("(10000000000,)") + bytes(64)),
    "examples": claims(10**12),
    "negative": claims(-1345),
    "unreadable": unreadable,
    "forged": lambda content, sent: None,  # See `sign`.
    "silent": lambda content, sent: time.sleep(10**6),
    "crash": lambda content, sent: os._exit(1),
}


def sign(kind: str, reply: Message) -> Message:
    """Puts another node's name under the reply, if that is the kind."""
    if kind == "forged":
        reply.metadata.__dict__["_src_node_id"] += 1
    return reply
