"""FedAvg in Apple's pfl with trivial work, in its own simulation backend: ROUNDS CLIENTS SAMPLED."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.trivial_work import RATE, WARMUP, features, model, rounds_and_clients, targets, tell


class Regression(nn.Module):
    """The model with the loss and metrics that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = model()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs)

    def loss(self, inputs: Tensor, wanted: Tensor, eval: bool = False) -> Tensor:
        """Mean squared error."""
        return nn.functional.mse_loss(self(inputs), wanted)

    def metrics(self, inputs: Tensor, wanted: Tensor, eval: bool = False) -> dict[str, Any]:
        """None."""
        return {}


def main() -> None:
    """One cohort of clients in every central iteration."""
    from pfl.aggregate.simulate import SimulatedBackend  # pyright: ignore[reportMissingImports]
    from pfl.algorithm.base import NNAlgorithmParams  # pyright: ignore[reportMissingImports]
    from pfl.algorithm.federated_averaging import FederatedAveraging  # pyright: ignore[reportMissingImports]
    from pfl.callback.base import TrainingProcessCallback  # pyright: ignore[reportMissingImports]
    from pfl.data.dataset import Dataset  # pyright: ignore[reportMissingImports]
    from pfl.data.federated_dataset import FederatedDataset  # pyright: ignore[reportMissingImports]
    from pfl.data.sampling import get_user_sampler  # pyright: ignore[reportMissingImports]
    from pfl.hyperparam.base import NNTrainHyperParams  # pyright: ignore[reportMissingImports]
    from pfl.metrics import Metrics  # pyright: ignore[reportMissingImports]
    from pfl.model.pytorch import PyTorchModel  # pyright: ignore[reportMissingImports]

    rounds, clients, sampled = rounds_and_clients()
    data = {str(k): (features(k), targets(k)) for k in range(clients)}
    sampler = get_user_sampler("minimize_reuse", list(data))
    users = FederatedDataset(lambda user: Dataset(raw_data=data[user], user_id=user), sampler)
    net = Regression()
    wrapped = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )
    ends_s = [time.perf_counter()]

    class Clock(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: object, model: object, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            ends_s.append(time.perf_counter())
            return False, Metrics()

    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds + WARMUP,
            evaluation_frequency=10**6,
            train_cohort_size=sampled,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=wrapped,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=None),
        callbacks=[Clock()],
        send_metrics_to_platform=False,
    )
    tell(ends_s, net.linear.weight.detach())


if __name__ == "__main__":
    main()
