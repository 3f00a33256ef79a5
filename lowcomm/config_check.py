"""Finds what is wrong with a configuration, before anything starts: ranges, and parts that do not fit together."""

from __future__ import annotations

from lowcomm.config import RunConfig
from lowcomm.data.proxy import check_proxy
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.gossip import Gossip
from lowcomm.model import Full
from lowcomm.sync.compatibility import check_islands, check_spec, check_tuning
from lowcomm.sync.turns import check_turns
from lowcomm.transport.heartbeat import check_heartbeat
from lowcomm.typecheck import check_types
from lowcomm.types import require
from lowcomm.zeroth_order import check_zeroth_order


def check(config: RunConfig, islands: int) -> None:
    """Raise ConfigError for the first field out of range or the first pair of parts that do not fit."""
    check_types(config)
    require(islands >= 1, "islands", islands, "1 or more", "pass --islands 4")
    require(config.steps >= 1, "steps", config.steps, "1 or more", "pass --steps 640")
    require(0 <= config.seed < 2**63, "seed", config.seed, "0 <= seed < 2^63", "pass --seed 0")
    name = config.name
    ok = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    require(ok, "name", name, "a file name without slashes", "pass --name my-run")
    threads = config.threads
    require(threads is None or threads >= 1, "threads", threads, "1 or more, or None", "leave it out")
    fits = not config.batched or config.transport == "simulated"
    require(fits, "batched", True, "False, as islands are processes of their own", "pass --transport simulated")
    plain = not config.batched or isinstance(config.model.tuning, Full)
    require(plain, "batched", True, "False, as model.tuning is set", "leave it out")
    require(config.log_every >= 1, "log_every", config.log_every, "1 or more", "10 is usual")
    _check_own_data(config)
    config.data.check(islands)
    config.model.check()
    config.inner.check()
    _check_sync(config)
    _check_clients(config, islands)
    _check_step_hashes(config)
    check_tuning(config.sync.spec(), config.model.tuning)
    check_turns(config.turns, config.client_state, config.against_turns(islands))
    size = config.island.size or 1
    check_zeroth_order(config.inner, config.sync.schedule, config.batched, size, config.model.compile)
    averages = config.sync.schedule(1, config.sync.every).average_gradients
    config.island.check(config.data.batch_size, averages, config.transport == "simulated")
    config.island.check_optimizer(config.inner.optimizer)
    for field_name, value in (
        ("eval.every", config.eval.every),
        ("eval.influence", config.eval.influence),
        ("checkpoint.every_rounds", config.checkpoint.every_rounds),
        ("checkpoint.stop_at_step", config.checkpoint.stop_at_step),
    ):
        require(value is None or value >= 1, field_name, value, "1 or more, or None for off", "leave it out")
    stop_at = config.checkpoint.stop_at_step
    stops = stop_at is None or stop_at < config.steps
    require(stops, "checkpoint.stop_at_step", stop_at, f"1 to {config.steps - 1}, below steps", "leave it out")
    every_s = config.checkpoint.every_s
    ok = every_s is None or 0 < every_s < float("inf")
    require(ok, "checkpoint.every_s", every_s, "a finite number above 0, or None for off", "300 is five minutes")
    require(config.checkpoint.keep >= 1, "checkpoint.keep", config.checkpoint.keep, "1 or more", "2 is usual")


def _check_step_hashes(config: RunConfig) -> None:
    """Raise ConfigError for a run whose islands' steps can't be hashed one by one between exchanges."""
    sync, size = config.sync, config.island.size or 1
    alone = sync.exchange is None and config.store is None
    averages = sync.schedule(1, sync.every).average_gradients
    for ok, legal, fix in (
        (
            not config.batched,
            "False with batched, which rounds steps otherwise than processes do",
            "leave one out",
        ),
        (not averages, "False with averaged gradients, which make every step an exchange", "use EveryH"),
        (alone, "False with a store or sync.exchange, whose islands have no rounds in common", "leave one out"),
        (size == 1, "False with islands of several ranks, none of which has the whole state", "pass --island.size 1"),
    ):
        require(ok or not config.step_hashes, "step_hashes", True, legal, fix)


def _check_own_data(config: RunConfig) -> None:
    """Raise ConfigError for what needs islands with text of their own, or can't be had of them."""
    own = config.data.sharding == "own"
    ok = not config.eval.clients or own or config.data.sharding == "by_folder" or config.data.partition is not None
    legal = "False, unless data.sharding is by_folder or data.partition is set"
    require(ok, "eval.clients", True, legal, "pass --data.sharding by_folder")
    choice = config.sync.exchange
    ok = not config.eval.directions or (choice is not None and choice.anchors == "own")
    legal = "False, as all islands have the same weights"
    require(ok, "eval.directions", True, legal, "leave it out, or use sync.exchange = Gossip()")
    for more in ("baselines", "membership"):
        ok = config.eval.clients or not getattr(config.eval, more)
        require(ok, f"eval.{more}", True, "False without eval.clients", "pass --eval.clients")


def _check_sync(config: RunConfig) -> None:
    sync = config.sync
    check_spec(sync.spec(), config.steps)
    if sync.privacy is not None:
        examples = sync.privacy.level == "example"
        fits = not (examples and config.batched)
        require(fits, "batched", True, "False, as gradients of single sequences are needed", "leave it out")
        twice = examples and sync.objective is not None and sync.objective.passes > 1
        require(not twice, "sync.objective", sync.objective, "one of one backward pass, with sync.privacy", "FedProx()")
        alone = config.island.size in (None, 1)
        require(alone, "island.size", config.island.size, "1, as sync.privacy clips whole updates", "leave it out")
    check_proxy(sync.proxy, type(sync.aggregator).__name__, sync.aggregator.proxies)
    check_heartbeat(sync.heartbeat_s, "sync.")
    timeout_ok = 0 < sync.timeout_s < float("inf")
    require(timeout_ok, "sync.timeout_s", sync.timeout_s, "a finite number above 0", "1800 is half an hour")
    require(1 <= sync.streams <= 64, "sync.streams", sync.streams, "1 to 64", "4 to 8 suit a round trip of 50 ms")


def _check_clients(config: RunConfig, islands: int) -> None:
    sync, clients = config.sync, config.sync.clients
    check_islands(sync.spec(), islands, 1, ())
    fits = not config.batched or sync.exchange is None or sync.exchange.lockstep
    require(fits, "batched", True, "False with sync.exchange, as islands' steps differ", "leave it out")
    pulled = isinstance(sync.exchange, Gossip) and sync.exchange.rule.pulls
    legal = "False, as sync.exchange.rule adds to single gradients"
    require(not (config.batched and pulled), "batched", True, legal, "leave it out")
    if isinstance(sync.exchange, Buffered):
        sync.exchange.check_processes(config.transport == "simulated" or islands == 1)
    for name in ("sampling", "local_steps", "objective", "secure", "attack"):
        if getattr(clients, name) is None:
            continue
        fits = not config.batched or name in ("secure", "attack")
        require(fits, "batched", True, f"False with sync.{name}, as islands' steps differ", "leave it out")
        alone = config.island.size in (None, 1)
        require(alone, "island.size", config.island.size, f"1 with sync.{name}", "leave it out")
