"""From a configuration to the rules of its chain, and to what one member's LocalSGD gets of it."""

from __future__ import annotations

import dataclasses

from lowcomm.aggregate import Mean
from lowcomm.aggregate.lora import LoraRule
from lowcomm.codec import Fp32
from lowcomm.codec.parts import Parts
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.exchange.store import Member, Store
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import RunFile
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.types import ConfigError

FIRST_ROUND_S = 60.0
"""What a member's round is expected to take before it has said so itself."""


def with_store(config: RunConfig, url: str) -> RunConfig:
    """The configuration of a run at this address: a recipe of fixed islands gets the settings of `Store()`.

    Raises ConfigError for another exchange.
    """
    choice = config.sync.exchange
    if choice is None:
        choice = Store()
    if not isinstance(choice, Store):
        raise ConfigError(
            f"store = {url!r} is not allowed with sync.exchange = {type(choice).__name__}: a run over a store has its "
            "own. Fix: use Store(mode='buffered', size=Z) in the recipe, or leave sync.exchange out"
        )
    return dataclasses.replace(config, store=url, sync=dataclasses.replace(config.sync, exchange=choice))


def choice_of(config: RunConfig) -> Store:
    """The settings of the store run."""
    assert isinstance(config.sync.exchange, Store)
    return config.sync.exchange


def shares_data(config: RunConfig) -> bool:
    """Whether members lease blocks of one text; otherwise each has its own."""
    return config.data.sharding != "own"


def tokens_per_step(config: RunConfig) -> int:
    """Of an island's inner step, if no target is masked."""
    return config.data.batch_size * config.data.seq_len * config.inner.accumulation


def rules_of(config: RunConfig, run: RunFile) -> ChainRules:
    """What the fold of this run needs."""
    sync, blocks = config.sync, run.data.get("blocks")
    return ChainRules(
        run_id=run.run_id,
        layouts=run.layouts,
        codec=sync.codec,
        aggregator=sync.aggregator,
        outer=sync.outer,
        seed=config.seed,
        stale=run.stale,
        keep=run.keep,
        blocks=blocks if isinstance(blocks, int) else None,
        lease_blocks=run.lease_blocks,
        target_tokens=run.target_tokens,
        turn=None if (rule := choice_of(config).rule) is None else rule.turn,
    )


def policy_of(config: RunConfig, islands: int) -> Policy:
    """When a run that was made for so many islands commits."""
    choice, sync = choice_of(config), config.sync
    return Policy(
        mode=choice.mode if choice.rule is None else "buffered",
        rule=choice.rule,
        size=choice.size,
        every_s=choice.every_s,
        islands=islands,
        quorum=sync.quorum,
        patience_s=choice.patience_s,
        expected_s=max(FIRST_ROUND_S, choice.patience_s),
        norm_bound=sync.norm_bound,
        damping="none" if choice.staleness == "constant" else "polynomial",
        nominal_tokens=islands * sync.every * tokens_per_step(config),
        snapshot_every_s=choice.snapshot_s,
        publish_every=choice.publish_every,
        anchor_every=choice.anchor_every,
    )


def lease_blocks(sizes: BlockSizes, policy: Policy) -> int:
    """Blocks that a member holds: those of pending contributions and of the round that it trains."""
    rounds = 1 if policy.mode == "synchronous" else policy.pending + 1
    return sizes.per_round * rounds


def alone(config: RunConfig) -> RunConfig:
    """What one member's process assembles: one island; what the chain does with Deltas is not its LocalSGD's."""
    sync = config.sync
    rule = sync.aggregator if isinstance(sync.aggregator, LoraRule) else Mean()
    codec = sync.codec if isinstance(sync.codec.bare, Parts) else Fp32()
    apart = Member(**{f.name: getattr(sync.exchange, f.name) for f in dataclasses.fields(Store)})
    own: SyncConfig = dataclasses.replace(sync, aggregator=rule, codec=codec, exchange=apart, outer_device="cpu")
    return dataclasses.replace(config, islands=1, transport="collective", batched=False, resume="auto", sync=own)
