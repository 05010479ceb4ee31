"""A client: trains on its own digits, or does worse."""

import time
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits import hostile, task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    clients = int(context.node_config["num-partitions"])
    time.sleep(float(context.run_config["pause"]))
    images, digits = task.client_data(client, clients)
    received: Any = message.content
    sent = received["arrays"]
    model = task.train(
        task.from_record(sent),
        images,
        digits,
        seed=int(received["config"]["server-round"]),
    )
    metrics = MetricRecord({"num-examples": len(digits)})
    content = RecordDict({"arrays": task.to_record(model), "metrics": metrics})
    is_hostile = client == clients - 1
    kind = str(context.run_config["hostility"]) if is_hostile else "none"
    hostile.KINDS[kind](content, sent)
    return hostile.sign(kind, Message(content, reply_to=message))
