"""The configuration of a run: frozen dataclasses that recipes return and the command line edits.

`check` refuses what can't work before anything starts; each message names field, value, legal range and fix.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.attack import Attack
from lowcomm.codec import Codec, Fp32
from lowcomm.data import DataConfig
from lowcomm.data.proxy import Proxy
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.island import InnerConfig, IslandConfig
from lowcomm.local import DesLoc, Objective
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov, Outer
from lowcomm.privacy import Mechanism
from lowcomm.sampling import Sampling
from lowcomm.schedule import EveryH, Schedule
from lowcomm.secure import SecureSum
from lowcomm.state.deadlines import LATE_TOLERANCE_S
from lowcomm.state.norms import NORM_BOUND
from lowcomm.state.spec import BufferRule, Clients, SyncSpec
from lowcomm.sync.turns import against_turns, take_turns
from lowcomm.transport.heartbeat import HEARTBEAT_S
from lowcomm.zeroth_order import ZerothOrder


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """What happens between islands."""

    every: int = 32
    """Inner steps per round (H)."""
    outer: Outer = field(default_factory=Nesterov)
    codec: Codec = field(default_factory=Fp32)
    schedule: Schedule = field(default_factory=EveryH)
    aggregator: Aggregator = field(default_factory=Mean)
    privacy: Mechanism | None = None
    """Clipping and noise before the codec, with an accountant and maybe a budget; None: nothing."""
    sampling: Sampling | None = None
    """Which islands train in a round (FixedSize, Poisson), drawn from the run's seed; None: all."""
    local_steps: tuple[int, ...] | None = None
    """Inner steps of each island per round, 1 to `every`; it rests for the others. None: `every` for all."""
    objective: Objective | None = None
    """What is added to the gradients of inner steps (FedProx, Scaffold); None: nothing."""
    moments: DesLoc | None = None
    """Inner optimizers' moments are averaged over the islands as well, each at its own period; None: they are local."""
    exchange: ExchangeChoice | None = None
    """Who exchanges with whom, and when; None: islands in lockstep."""
    secure: SecureSum | None = None
    """Secure aggregation: nobody sees a single contribution, only the sum; None: plain sums."""
    proxy: Proxy | None = None
    """A public text by which some rules judge contributions (Shapley, Trust); None: there is none."""
    attack: Attack | None = None
    """What some islands do to their contributions on purpose, to test the aggregator; None: nothing."""
    allow_attack: bool = False
    """Whether the attack is meant: a run with one is refused without it."""
    fresh_inner: bool = False
    """Every round begins with fresh inner moments, so that islands keep nothing between rounds but their place in their
    text (with a codec, objective and rule that keep nothing); off: moments go on."""
    buffers: dict[str, BufferRule] | None = None
    """Persistent buffers by name pattern, such as '*running_mean': average over the islands at each sync, or local."""
    outer_device: Literal["model", "cpu"] = "model"
    """Where global weights and outer state live: with the model, or in (pinned) CPU memory."""
    quorum: float = 0.5
    """Fraction of the islands whose contributions must be usable for a round to be committed."""
    norm_bound: float | None = NORM_BOUND
    """An island whose Delta is so many times larger than is usual is left out of the round; None: none for that."""
    timeout_s: float = 1800.0
    """Seconds after which a silent peer fails an exchange, or is left behind where the others go on."""
    heartbeat_s: float | None = HEARTBEAT_S
    """Real islands tell each other so often that they live, also while they train; None: who is dead is seen at a sync,
    and the run ends."""
    on_late: Literal["wait", "stop"] = "wait"
    """When an exchange has not arrived by its deadline: wait for it, or stop at the next one with all islands saved."""
    late_tolerance_s: float = LATE_TOLERANCE_S
    """With "stop": seconds that training may wait for one late exchange; every wait is reported all the same."""
    streams: int = 1
    """TCP connections between two islands that share large transfers on the CPU: several for long round trips."""

    @property
    def clients(self) -> Clients:
        """Who takes part how, as a LocalSGD takes it."""
        return Clients(
            sampling=self.sampling, local_steps=self.local_steps, objective=self.objective, secure=self.secure,
            attack=self.attack, allow_attack=self.allow_attack, moments=self.moments,
            fresh_inner=self.fresh_inner,
        )  # fmt: skip

    def spec(self, seed: int = 0) -> SyncSpec:
        """The choices of the LocalSGD that the run builds."""
        return SyncSpec(
            every=self.every,
            outer=self.outer,
            codec=self.codec,
            schedule=self.schedule,
            aggregator=self.aggregator,
            privacy=self.privacy,
            clients=self.clients,
            exchange=self.exchange,
            buffers=dict(self.buffers or {}),
            outer_device=None if self.outer_device == "model" else "cpu",
            seed=seed,
            quorum=self.quorum,
            norm_bound=self.norm_bound,
            on_late=self.on_late,
            late_tolerance_s=self.late_tolerance_s,
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When the global weights are evaluated on the validation part."""

    every: int | None = None
    """Inner steps between evaluations, counted at the next sync; None: only at the end."""
    directions: bool = False
    """Of islands with weights of their own (gossip): also how much worse they are than their mean, on the same text."""
    clients: bool = False
    """Evaluate every island's own held-out text at the end (data.sharding by_folder or a partition): clients.json."""
    baselines: bool = False
    """With `clients`: also train on each island's data alone and on all data together, as many steps, to compare. Sites
    that keep their data are compared with training alone only."""
    influence: int | None = None
    """Rounds between two tables of whose Delta helps whose held-out loss (DICE): influence.json; None: none."""
    membership: bool = False
    """With `clients`: also how well a client's training sequences are told from its held-out ones by their loss."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When and how many checkpoints are kept."""

    every_rounds: int | None = None
    """Rounds between checkpoints (with DDP: multiples of sync.every steps); None: as every_s says."""
    every_s: float | None = 300.0
    """Seconds of training that a failure may cost: the longest time between checkpoints. None: as every_rounds says."""
    keep: int = 2
    """Complete checkpoints kept, not counting one that a failure saved; older ones are removed after a newer one."""
    stop_at_step: int | None = None
    """Save, leave with status "stopped" and exit code 3 after this inner step (resume later); None: run to the end."""
    export: bool = True
    """Write the final weights and the tokenizer as a transformers directory."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: what is trained, on what, and how islands talk to each other."""

    name: str = "run"
    """Name of the run; the default run directory is runs/NAME."""
    islands: int | None = None
    """Number of islands. None: torchrun's world size, or 4 on one machine."""
    steps: int = 640
    """Inner steps per island over the whole run."""
    seed: int = 0
    """Seed of weights, data order and each round's randomness."""
    transport: Literal["collective", "simulated"] = "collective"
    """collective: one process per island (torch.distributed); simulated: all islands in one process, same bits."""
    batched: bool = False
    """Simulated islands in one forward and backward: faster for small models, equal to the loop but for rounding."""
    turns: Literal["auto", "on", "off"] = "auto"
    """Simulated islands take turns on one model, with the same bits, each with tensors of its own only for what differs
    from the global weights: auto with more than 8 where that fits, on (or the run is refused), off (a model each)."""
    client_state: Literal["memory", "disk"] = "memory"
    """Where islands that take turns keep between their rounds what is theirs (inner moments, error feedback, control
    variates, private factors): memory, or disk, in the run directory while the run lasts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models; auto takes the GPU if there is one."""
    threads: int | None = None
    """CPU threads per island process. None: cores / processes on this machine, at least 1."""
    store: str | None = None
    """A run that islands join and leave at any time: its address, a directory, s3://, gs:// or az://; None: fixed."""
    run_dir: Path | None = None
    """Directory of everything the run leaves behind. None: runs/NAME."""
    resume: bool | Literal["auto"] = False
    """Continue from the newest complete checkpoint of the run directory; auto: if there is one, else start."""
    log_every: int = 10
    """Inner steps between two lines of metrics per island."""
    step_hashes: bool = False
    """Hash every island's state after each inner step, for `lowcomm audit` and `lowcomm verify`: steps/, SHA-256."""
    tensorboard: bool = True
    """Also write TensorBoard scalars, where the package is installed."""
    island: IslandConfig = field(default_factory=IslandConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name

    def take_turns(self, islands: int) -> bool:
        """Whether so many islands take turns on one model."""
        return take_turns(self.turns, self.client_state, islands, self.against_turns(islands))

    def against_turns(self, islands: int) -> str | None:
        """Why so many islands can't take turns on one model; None: they can."""
        if self.transport != "simulated":
            return "islands are processes of their own"
        if islands == 1:
            return "there is one island"
        if self.batched or self.model.compile:
            return f"{'batched' if self.batched else 'model.compile'} needs a model each"
        if self.step_hashes:
            return "step_hashes reads each island's own model"
        if self.eval.influence is not None or self.sync.proxy is not None:
            return "eval.influence and sync.proxy try weights out on a model of an island's own"
        if isinstance(self.inner.optimizer, ZerothOrder):
            return "islands that train by scalars share every step"
        return against_turns(self.sync.spec())
