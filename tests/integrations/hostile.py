"""Replies that a client can send: name → (what it sends, whether a rule may see it)."""

import json
import zipfile
from io import BytesIO

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from tests.integrations import fake_grid


def npy(shape, descr="'<f4'", order="False", body=b"", version=1, pad=118):
    """Bytes of an array with any header and any body."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = (text.ljust(pad - 1) + "\n").encode()
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + body


def with_array(change):
    """Another array `big` [50] in an otherwise honest reply."""

    def answer(message, grid):
        honest = fake_grid.honest(message, grid)
        record = honest.content["arrays"]
        record["big"] = change(record["big"])
        return honest

    return answer


def values(value):
    """`big` full of a value."""
    return with_array(lambda _: Array(np.full(50, value, np.float32)))


def data(make):
    """Other bytes in `big`, which still claims to be what it should."""
    return with_array(lambda a: Array(a.dtype, a.shape, a.stype, make(a.data)))


def one_entry(value):
    def change(array):
        x = array.numpy().copy()
        x[7] = value
        return Array(x)

    return with_array(change)


def with_record(change):
    def answer(message, grid):
        honest = fake_grid.honest(message, grid)
        honest.content["arrays"] = change(honest.content["arrays"])
        return honest

    return answer


def with_content(make):
    return lambda message, grid: Message(make(message), reply_to=message)


def without(name):
    return with_record(
        lambda record: ArrayRecord({k: v for k, v in record.items() if k != name})
    )


def plus(name):
    return with_record(
        lambda record: ArrayRecord({**record, name: Array(np.zeros(3, "f4"))})
    )


def archive(_):
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as entries:
        entries.writestr("x.npy", npy("(50,)", body=bytes(200)))
    return file.getvalue().ljust(128 + 200, b"\0")


def raw(**fields):
    """Attributes that Flower's own constructor would refuse."""

    def change(array):
        for name, value in fields.items():
            array.__dict__[name] = value
        return array

    return with_array(change)


def error(reason):
    return lambda message, grid: Message(Error(2, reason), reply_to=message)


def claimed(**metadata):
    def answer(message, grid):
        honest = fake_grid.honest(message, grid)
        for name, value in metadata.items():
            honest.metadata.__dict__[f"_{name}"] = value
        return honest

    return answer


def raises(error):
    def answer(message, grid):
        raise error

    return answer


class Trap:
    """Raises at whatever is asked of it."""

    def __getattr__(self, name):
        raise RecursionError(name)


def trapped(message, grid):
    honest = fake_grid.honest(message, grid)
    honest.content.__dict__["_data"] = Trap()
    return honest


DEEP = "(" * 3000 + ")" * 3000
BODY = bytes(200)

REJECTED = {
    "NaN": values(np.nan),
    "infinity": values(np.inf),
    "minus infinity": values(-np.inf),
    "one NaN": one_entry(np.nan),
    "one infinity": one_entry(np.inf),
    "near the float limit": values(3e38),
    "float64": with_array(lambda a: Array(a.numpy().astype(np.float64))),
    "float16": with_array(lambda a: Array(a.numpy().astype(np.float16))),
    "int32": with_array(lambda a: Array(a.numpy().astype(np.int32))),
    "complex": with_array(lambda a: Array(a.numpy().astype(np.complex64))),
    "bool": with_array(lambda a: Array(np.ones(50, bool))),
    "text": with_array(lambda a: Array(np.full(50, "abcd"))),
    "one column": with_array(lambda a: Array(a.numpy()[:, None])),
    "one row": with_array(lambda a: Array(a.numpy()[None])),
    "shorter": with_array(lambda a: Array(a.numpy()[:49])),
    "longer": with_array(lambda a: Array(np.resize(a.numpy(), 51))),
    "scalar": with_array(lambda a: Array(np.ones((), np.float32))),
    "empty array": with_array(lambda a: Array(np.zeros((0,), np.float32))),
    "a million times as large": with_array(lambda a: Array(np.zeros(10**6, "f4"))),
    "no bytes": data(lambda _: b""),
    "one byte": data(lambda _: b"\x93"),
    "half": data(lambda x: x[: len(x) // 2]),
    "cut header": data(lambda x: x[:40]),
    "one byte more": data(lambda x: x + b"\0"),
    "one byte less": data(lambda x: x[:-1]),
    "garbage": data(lambda x: bytes(len(x))),
    "zip": data(archive),
    "pickle": data(lambda x: b"\x80\x04N.".ljust(len(x), b"\0")),
    "claims ten billion": data(lambda _: npy("(10000000000,)", body=BODY)),
    "claims 10^4000": data(lambda _: npy(f"({10**4000},)", body=BODY, pad=4120)),
    "negative shape": data(lambda _: npy("(-50,)", body=BODY)),
    "shape of bools": data(lambda _: npy("(True, 50)", body=BODY)),
    "shape of floats": data(lambda _: npy("(50.0,)", body=BODY)),
    "shape a number": data(lambda _: npy("50", body=BODY)),
    "shape a list": data(lambda _: npy("[50]", body=BODY)),
    "shape an expression": data(lambda _: npy("(25+25,)", body=BODY)),
    "deep brackets": data(lambda _: npy(DEEP, body=BODY, pad=6100)),
    "deep minus": data(lambda _: npy("(" + "-" * 3900 + "1,)", body=BODY, pad=4000)),
    "object": data(lambda _: npy("(50,)", "'|O'", body=BODY)),
    "object, wide": data(lambda _: npy("(50,)", "'O'", body=BODY + BODY)),
    "structured": data(lambda _: npy("(50,)", "[('a', '<f4')]", body=BODY)),
    "sub-array": data(lambda _: npy("(50,)", "'(1,)f4'", body=BODY)),
    "void": data(lambda _: npy("(50,)", "'V4'", body=BODY)),
    "dtype a number": data(lambda _: npy("(50,)", "4", body=BODY)),
    "dtype nonsense": data(lambda _: npy("(50,)", "'no such'", body=BODY)),
    "dates": data(lambda _: npy("(25,)", "'<M8[s]'", body=BODY)),
    "order a number": data(lambda _: npy("(50,)", order="2", body=BODY)),
    "header a call": data(lambda _: npy("().__class__", body=BODY)),
    "header without shape": data(
        lambda _: npy("(50,)", body=BODY).replace(b"shape", b"shake")
    ),
    "header of a set": data(lambda x: x[:10] + b"{(1,)}".ljust(117) + b"\n" + x[128:]),
    "header with a null": data(lambda x: x[:30] + b"\0" + x[31:]),
    "header not UTF-8": data(lambda x: x[:12] + b"\xff\xfe" + x[14:]),
    "header length lies": data(lambda x: x[:8] + b"\xff\xff" + x[10:]),
    "header length zero": data(lambda x: x[:8] + b"\0\0" + x[10:]),
    "version 9": data(lambda x: x[:6] + b"\x09\x00" + x[8:]),
    "bytes of a str": raw(data="x" * 328),
    "bytes of None": raw(data=None),
    "bytes of a list": raw(data=[0] * 328),
    "other serialisation": raw(stype="torch.tensor"),
    "serialisation of None": raw(stype=None),
    "no array": without("big"),
    "no counter": without("count"),
    "one array more": plus("more"),
    "one array more, odd name": plus("\n[91mforged line\x1b[2J" * 50),
    "other names": with_record(
        lambda record: ArrayRecord({f"{k} ": v for k, v in record.items()})
    ),
    "counter of floats": with_record(
        lambda r: ArrayRecord({**r, "count": Array(np.zeros((), np.float64))})
    ),
    "empty record": with_record(lambda record: ArrayRecord()),
    "no content": with_content(lambda message: RecordDict()),
    "no arrays": with_content(
        lambda m: RecordDict({"metrics": MetricRecord({"num-examples": 3})})
    ),
    "arrays twice": with_content(
        lambda m: RecordDict(
            {
                "arrays": fake_grid.sent_model(m),
                "more": fake_grid.sent_model(m),
                "metrics": MetricRecord({"num-examples": 3}),
            }
        )
    ),
    "metrics twice": with_content(
        lambda m: RecordDict(
            {
                "arrays": fake_grid.sent_model(m),
                "metrics": MetricRecord({"num-examples": 3}),
                "more": MetricRecord({"num-examples": 3}),
            }
        )
    ),
    "configuration only": with_content(
        lambda m: RecordDict({"arrays": ConfigRecord({"a": 1})})
    ),
    "error": error("a\nb"),
    "error without reason": error(None),
    "error, long": error("x" * 10**6),
    "trap": trapped,
}

# Rows like another's, or claims that are not asked for: the rule sees these.
SEEN = {
    "zero update": lambda m, grid: fake_grid.reply(m, fake_grid.sent_model(m)),
    "far away": values(1e15),
    "backwards": lambda m, grid: fake_grid.reply(
        m, fake_grid.moved(fake_grid.sent_model(m), -30.0)
    ),
    "column-major": with_record(
        lambda r: ArrayRecord({**r, "w": Array(np.asfortranarray(r["w"].numpy()))})
    ),
    "big-endian": with_array(lambda a: Array(a.numpy().astype(">f4"))),
    "other padding": data(lambda x: npy("(50,)", body=x[128:], pad=1000)),
    "version 3": data(lambda x: npy("(50,)", body=x[128:], version=3)),
    "forged source": claimed(src_node_id=2),
    "forged source, SuperLink's": claimed(src_node_id=1),
    "forged answer": claimed(reply_to_message_id="message 0"),
    "forged kind": claimed(message_type="evaluate", group_id="no such"),
    "claims 10^12": lambda m, grid: fake_grid.reply(
        m,
        fake_grid.moved(fake_grid.sent_model(m), -30.0),
        {"num-examples": 10**12},
    ),
    "claims a negative number": lambda m, grid: fake_grid.reply(
        m, fake_grid.moved(fake_grid.sent_model(m), -30.0), {"num-examples": -39}
    ),
    "no claim": lambda m, grid: fake_grid.reply(m, fake_grid.sent_model(m), {"x": 1}),
    "metrics of NaN": lambda m, grid: fake_grid.reply(
        m,
        fake_grid.sent_model(m),
        {"num-examples": float("nan"), "loss": float("inf"), "influence.2": 3.0},
    ),
    "a thousand metrics": lambda m, grid: fake_grid.reply(
        m, fake_grid.sent_model(m), {json.dumps([i]): 1.0 for i in range(1000)}
    ),
    "lists of metrics": lambda m, grid: fake_grid.reply(
        m, fake_grid.sent_model(m), {"num-examples": [1, 2], "loss": [0.1, 0.2]}
    ),
    "counter of its own": with_record(
        lambda r: ArrayRecord({**r, "count": Array(np.asarray(-(2**63)))})
    ),
}

# In the pull, before the strategy sees anything.
PULLED = {
    "cannot be pulled": raises(ValueError("no inflating this")),
    "recursion in the pull": raises(RecursionError()),
    "memory in the pull": raises(MemoryError()),
    "two replies at once": lambda m, grid: [
        fake_grid.honest(m, grid),
        fake_grid.honest(m, grid),
    ],
    "three, of which none is for us": lambda m, grid: [
        claimed(reply_to_message_id="x")(m, grid) for _ in range(3)
    ],
    "no message": lambda m, grid: [Trap()],
    "None in a list": lambda m, grid: [None],
}
