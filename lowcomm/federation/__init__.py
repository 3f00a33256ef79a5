"""Runs across organisations, with Flower as the engine (extra `flower`): clients behind firewalls, one server between.

Each client is an island whose transport is `Relayed`. Its exchanges are Flower messages: a SuperNode at the client
fetches them from the server's SuperLink over TLS, with a key that the server knows. The ServerApp holds the `Relay`.

    trainer -> Mailbox -> ClientApp -> SuperNode -> SuperLink -> ServerApp -> Relay, and back

    client.py    what runs at a client: the trainer, and beside it the thread that answers Flower's messages
    server.py    the ServerApp
    session.py   one run on it, with its clients.py
    packing.py   requests and answers as Flower records
    keys.py      certificate of the server, keys of the clients
    submit.py    starts a run on a SuperLink and waits for its outcome
    command.py   `lowcomm federation keys | check | client | run`

Only functions of this package import flwr, so that everything else works without it.
"""
