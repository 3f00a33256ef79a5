"""FedAvg in Flower with trivial work, in its own simulation engine (Ray): ROUNDS CLIENTS SAMPLED."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.peers.trivial_work import RATE, WARMUP, features, model, rounds_and_clients, targets, tell


def train(message: Any, context: Any) -> Any:
    """What a client does with the server's weights."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    client = int(context.node_config["partition-id"])
    net = model()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    inner = torch.optim.SGD(net.parameters(), lr=RATE)
    torch.nn.functional.mse_loss(net(features(client)), targets(client)).backward()
    inner.step()
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(content=RecordDict(content), reply_to=message)


def main() -> None:
    """As many clients in every round, no evaluation."""
    from flwr.app import ArrayRecord  # pyright: ignore[reportMissingImports]
    from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]
    from flwr.serverapp import ServerApp  # pyright: ignore[reportMissingImports]
    from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]
    from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]

    rounds, clients, sampled = rounds_and_clients()
    server, client = ServerApp(), ClientApp()
    client.train()(train)
    found: dict[str, Any] = {}

    @server.main()
    def serve(grid: Any, context: Any) -> None:
        ends_s = [time.perf_counter()]

        def ended(number: int, arrays: Any) -> None:
            if number:
                ends_s.append(time.perf_counter())

        strategy = FedAvg(
            fraction_train=sampled / clients,
            fraction_evaluate=0.0,
            min_train_nodes=sampled,
            min_available_nodes=clients,
        )
        start = ArrayRecord(model().state_dict())
        result = strategy.start(grid, start, num_rounds=rounds + WARMUP, evaluate_fn=ended)
        found.update(ends_s=ends_s, weights=result.arrays.to_torch_state_dict()["weight"])

    run_simulation(server, client, clients, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    tell(found["ends_s"], found["weights"])


if __name__ == "__main__":
    main()
