"""The ClientApp: its own training, and what dlfd-fleet adds to it."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dlfd_fleet.federation import add_unlearning
from quickstart.task import Net, task, train

app = add_unlearning(ClientApp(), task)


@app.train()
def train_on_this_site(message: Message, context: Context) -> Message:
    """Train on everybody here who has not asked to be forgotten."""
    network = Net()
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    people = task.training_data(context)
    torch.manual_seed(0)
    loss = train(network, people, epochs=4, learning_rate=0.02)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(people)})
    return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)
