"""A Flower grid whose sites answer in this process, each from its own folder, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from client.app import app


class SitesHere:
    """The fleet's own ClientApp on the folders of sites; those that are away are not connected.

    Parameters
    ----------
    folders
        By the number of the node.
    away
        Nodes that are not there.
    """

    def __init__(self, folders: dict[int, Path], away: frozenset[int] = frozenset()) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower names who makes a message
        self._folders = {node: folder for node, folder in folders.items() if node not in away}
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are there."""
        return list(self._folders)

    def get_nodes(self) -> list[NodeInfo]:
        """Return what Flower tells of them."""
        return [NodeInfo(node_id=node) for node in self._folders]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let each node answer its message, and return the messages' ids."""
        ids = []
        for message in messages:
            self._sent += 1
            name, node = f"message-{self._sent}", message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = name
            ids.append(name)
            if node in self._folders:
                self._replies[name] = self._answer(message, node)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the answers to messages."""
        for name in message_ids:
            reply = self._replies.pop(name, None)
            if reply is not None:
                yield reply

    def _answer(self, message: Message, node: int) -> Message:
        # As over a network: what a node does to its message nobody else sees.
        own = Message(RecordDict(dict(message.content)), node, message.metadata.message_type)
        own.metadata.__dict__["_message_id"] = message.metadata.message_id
        config: UserConfig = {"site-folder": str(self._folders[node])}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        try:
            return app(own, context)
        except Exception as error:  # a site's fault is an answer, as from a SuperNode
            return Message(Error(code=0, reason=str(error)), reply_to=own)
