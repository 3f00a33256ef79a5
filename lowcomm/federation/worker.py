"""Beside the trainer: takes Flower's messages from the SuperNode of this machine and has the ClientApp answer them.

A SuperNode that starts ClientApps by itself starts a new process for each message, from code that the server sends.
Here the SuperNode runs with `--isolation process`, and this thread is the process: one for the whole run, with the code
that is installed here. What the server sends is data, never run.

The Runtime API that it speaks is flwr's own between SuperNode and app; `engine.SERIES` says of which version.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from lowcomm.federation.mailbox import Failure, Mailbox
from lowcomm.federation.packing import pack_requests, unpack_answers
from lowcomm.types import PayloadError, TransportError

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.supercore.runtime import RuntimeHttpClient

POLL_S = 0.1
SILENT_S = 10.0
"""A SuperNode that does not answer for so long is gone."""


def make_client_app(mailbox: Mailbox, client: int, clients: int) -> ClientApp:
    """Hands answers to the trainer and replies with what it posts next."""
    from flwr.app import Message as Reply
    from flwr.clientapp import ClientApp as App

    app = App()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        del context  # nothing is kept in it: the state is the trainer's
        try:
            mailbox.enter(message.metadata.run_id)
            answers, failure = unpack_answers(message.content, client)
            mailbox.deliver(answers)
        except (PayloadError, TransportError) as error:
            failure = Failure(cause=str(error))
        if failure is not None:
            mailbox.fail(failure)
        requests, outcome = mailbox.collect()
        return Reply(pack_requests(client, clients, requests, outcome), reply_to=message)

    return app


class Worker(threading.Thread):
    """Serves one SuperNode until `stop`; a failure of its own fails the mailbox."""

    def __init__(self, app: ClientApp, mailbox: Mailbox, address: str, secret: bytes) -> None:
        """address: HOST:PORT of the SuperNode's Runtime API, on this machine; secret: what both read from a file."""
        super().__init__(name="flower-worker", daemon=True)
        self._app = app
        self._mailbox = mailbox
        self._address = address
        self._secret = secret
        self._ending = threading.Event()

    def run(self) -> None:
        """Until stopped."""
        try:
            self._serve()
        except Exception as error:  # whatever it is, the trainer must not wait for ever
            self._mailbox.fail(Failure(cause=f"the connection to the SuperNode at {self._address} is lost: {error}"))

    def stop(self) -> None:
        """Take no more messages."""
        self._ending.set()

    def _serve(self) -> None:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

        protected = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        signed = SuperExecAuthHttpInterceptor(master_secret=self._secret, protected_methods=protected)
        client = _connect(self._address, [signed])
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        while not self._ending.is_set():
            found = client.AcquireTask(wanted)
            if not found.token:
                self._ending.wait(POLL_S)
                continue
            self._answer(found.token)
        client.close()

    def _answer(self, token: str) -> None:
        """One message: what flwr's own ClientApp process does, but for fetching code."""
        from flwr.common.constant import SubStatus
        from flwr.supercore.heartbeat import HeartbeatSender
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
        from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

        client = _connect(self._address, [RuntimeTokenHttpInterceptor(token)])
        heartbeat = HeartbeatSender(_heartbeat(client))
        heartbeat.start()
        try:
            message, context = _pull(client)
            push_message(client, self._app(message=message, context=context), context)
        finally:
            heartbeat.stop()  # before the task ends, and with it the token that a late heartbeat would show
        push_task_output(client=client, context=context, sub_status=SubStatus.COMPLETED, details="")
        client.close()


def _heartbeat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Says that a task is being worked on. Flower's own interrupts this process, the trainer, when it is refused.

    Here a task that the SuperNode has given up fails with its reply, and the reason reaches the trainer.
    """
    import httpx
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    def beat() -> bool:
        try:
            return client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except httpx.HTTPError:
            return False  # it is tried again until the reply is there

    return beat


def _pull(client: RuntimeHttpClient) -> tuple[Message, Context]:
    """The message and the app's context. The SuperNode announces a message before its objects have come."""
    from flwr.app import Message
    from flwr.common.serde import context_from_proto
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest
    from flwr.supercore.inflatable.inflatable_protobuf_utils import (
        make_confirm_message_received_fn_protobuf,
        make_pull_object_fn_protobuf,
    )
    from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree

    context = context_from_proto(client.PullTaskInput(PullTaskInputRequest()).context)
    node, run_id = Node(node_id=context.node_id), context.run_id
    (tree,) = client.PullMessages(PullAppMessagesRequest()).message_object_trees
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id),
        return_type=Message,
        initial_backoff=POLL_S,
    )
    vars(message.metadata)["_message_id"] = tree.object_id  # its own id is not part of what was sent
    return message, context


def _connect(address: str, interceptors: list) -> RuntimeHttpClient:
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient

    patient = make_simple_http_retry_invoker()
    patient.max_time = SILENT_S
    patient.should_giveup = is_final(patient.should_giveup)
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # loopback only
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
        retry_invoker=patient,
    )


def is_final(flowers: Callable[[Exception], bool] | None) -> Callable[[Exception], bool]:
    """Whether a failed call is not made again.

    Flower interrupts its process when a token is refused, and ends the thread, without a word, when the run has ended.
    Here both are errors, which `Worker.run` hands to the trainer.
    """
    import httpx

    refusals = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)

    def final(error: Exception) -> bool:
        refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in refusals
        return refused or (flowers is not None and flowers(error))

    return final
