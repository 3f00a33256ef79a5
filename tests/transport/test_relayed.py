"""The relayed transport and its relay, without Flower: islands are threads, and the relay lies between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowcomm.aggregate.lora import FFA, FedSB, LoraRule
from lowcomm.codec import Codec
from lowcomm.outer import SGD
from lowcomm.schedule import EveryStep, Schedule, Streaming
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated, Transport
from lowcomm.transport.relay import Answer, Relay, Request
from lowcomm.transport.relayed import Relayed, Waiting
from lowcomm.types import SyncError, TransportError
from tests.methods import LORA_RULES, name, whole_codecs
from tests.support import lora_toy, toy

ISLANDS = 3
Result = TypeVar("Result")


class Between:
    """A relay that threads post to; from exchange `broken_at` on everything fails."""

    def __init__(self, islands: int, broken_at: int | None = None) -> None:
        self.relay = Relay(islands)
        self.broken_at = broken_at
        self.changed = threading.Condition()
        self.answers: dict[tuple[int, int], Answer] = {}
        self.failure: str | None = None

    def post(self, island: int) -> Callable[[Request], Waiting]:
        def posted(request: Request) -> Waiting:
            with self.changed:
                if self.broken_at is not None and request.number >= self.broken_at:
                    self.failure = "client 1 is lost"
                try:
                    answers = self.relay.offer(island, request) if self.failure is None else {}
                except TransportError as error:
                    self.failure, answers = str(error), {}
                self.answers |= {(k, answer.number): answer for k, answer in answers.items()}
                self.changed.notify_all()
            return lambda: self.wait(island, request.number)

        return posted

    def wait(self, island: int, number: int) -> Answer:
        with self.changed:
            key = (island, number)
            assert self.changed.wait_for(lambda: key in self.answers or self.failure is not None, timeout=30)
            if key in self.answers:
                return self.answers.pop(key)
            raise TransportError(f"{self.failure}. Nothing was committed")


def on_threads(islands: int, job: Callable[[Relayed], Result], broken_at: int | None = None) -> list[Result]:
    """What `job` gives on each island; the first error is raised."""
    between = Between(islands, broken_at)
    return each_on_a_thread(between, lambda k: job(Relayed(islands, k, between.post(k))))


def each_on_a_thread(between: Between, work: Callable[[int], Result]) -> list[Result]:
    """What `work` gives for each island; the first error ends the exchanges of all, and is raised."""
    results, errors = dict[int, Result](), list[BaseException]()

    def run(k: int) -> None:
        try:
            results[k] = work(k)
        except BaseException as error:
            errors.append(error)
            with between.changed:
                between.failure = between.failure or str(error)
                between.changed.notify_all()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(between.relay.islands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[k] for k in range(between.relay.islands)]


def weights_only(seen: list[str]) -> list[str]:
    return [line for line in seen if not line.startswith("bytes")]


def simulated(codec: Codec | None = None, schedule: Schedule | None = None) -> list[str]:
    return weights_only(
        toy.trajectory(toy.build(ISLANDS, codec=codec, schedule=schedule, transport=Simulated(ISLANDS)))
    )


@pytest.mark.parametrize("codec", whole_codecs(), ids=name)
def test_every_codec_gives_the_bits_of_the_simulation(codec: Codec) -> None:
    def train(transport: Relayed) -> list[str]:
        return weights_only(toy.trajectory(toy.build(1, codec=codec, transport=transport)))

    assert on_threads(ISLANDS, train) == [simulated(codec)] * ISLANDS


@pytest.mark.parametrize("schedule", [EveryStep(), Streaming(fragments=2, delay=1, by="size")], ids=name)
def test_schedules_give_the_bits_of_the_simulation(schedule: Schedule) -> None:
    def train(transport: Relayed) -> list[str]:
        return weights_only(toy.trajectory(toy.build(1, schedule=schedule, transport=transport)))

    assert on_threads(ISLANDS, train) == [simulated(schedule=schedule)] * ISLANDS


@settings(max_examples=30, deadline=None)
@given(
    numel=st.integers(1, 50).map(lambda n: n * ISLANDS),
    weights=st.tuples(*[st.sampled_from([0.0, 0.25, 1 / 3, 1.0])] * ISLANDS).filter(any),
    seed=st.integers(0, 1000),
)
def test_a_sum_has_the_bits_of_the_simulation(numel: int, weights: tuple[float, ...], seed: int) -> None:
    vectors = list(torch.randn(ISLANDS, numel, generator=torch.Generator().manual_seed(seed)))
    expected = torch.empty(numel)
    Simulated(ISLANDS).weighted_sum(vectors, weights, expected)

    def add(transport: Relayed) -> Tensor:
        me = transport.local[0]
        out = vectors[me].clone()
        transport.weighted_sum([out], weights, out)  # the result may take the vector's place
        assert transport.sent_bytes == [4 * numel if weights[me] else 0]
        assert transport.received_bytes == [4 * numel]
        return out

    assert all(torch.equal(out, expected) for out in on_threads(ISLANDS, add))


def collectives(transport: Transport) -> list[list[Tensor]]:
    """Rows of odd sizes and several dtypes through every other collective; what each local island got."""
    own = transport.local
    rows = [torch.arange(5, dtype=torch.float64) + k for k in own]
    sized = [torch.full((7 * k,), k, dtype=torch.uint8) for k in own]
    everyone = range(transport.islands)
    sends = [[torch.full((3 * k + j,), 10 * k + j, dtype=torch.uint8) for j in everyone] for k in own]
    swapped = transport.swap_rows(sends, [[3 * j + k for j in everyone] for k in own])
    first = [torch.full((2, 3), 1.5 + k, dtype=torch.bfloat16) for k in own]
    gathered, ragged = transport.gather(rows), transport.gather_sized(sized)
    transport.broadcast(first)
    return [[gathered, *ragged, *swapped[i], first[i]] for i in range(len(own))]


def test_rows_arrive_where_they_should() -> None:
    expected = collectives(Simulated(ISLANDS))
    found = on_threads(ISLANDS, lambda transport: (transport.local[0], collectives(transport)[0]))
    for k, tensors in found:
        assert len(tensors) == len(expected[k])
        for tensor, wanted in zip(tensors, expected[k], strict=True):
            assert tensor.dtype == wanted.dtype
            assert torch.equal(tensor, wanted)


def test_counted_bytes_are_those_of_the_link_to_the_relay() -> None:
    def exchange(transport: Relayed) -> tuple[int, int]:
        transport.gather([torch.zeros(10, dtype=torch.int64)])
        transport.broadcast([torch.zeros(6)])
        return transport.sent_bytes[0], transport.received_bytes[0]

    assert on_threads(ISLANDS, exchange) == [(80 + 24, 160), (80, 160 + 24), (80, 160 + 24)]


def test_a_failed_exchange_keeps_the_weights_and_the_pseudo_gradient() -> None:
    def train(transport: Relayed) -> bool:
        sync = toy.build(1, outer=SGD(lr=1.0), transport=transport)
        for step in range(toy.EVERY - 1):
            toy.train_step(sync, step)
        before = toy.flat(list(sync.weights().values()))
        with pytest.raises(SyncError, match="client 1 is lost"):
            toy.train_step(sync, toy.EVERY - 1)
        local = toy.flat(sync.replicas[0].tensors(sync.state.fragments[0]))
        kept = torch.equal(before, toy.flat(list(sync.weights().values())))
        return kept and not torch.equal(local, before) and list(sync.pending) == [0]

    exchanges = 2  # before the first sync: the handshake's
    assert on_threads(ISLANDS, train, broken_at=exchanges) == [True] * ISLANDS
    assert on_threads(ISLANDS, train, broken_at=exchanges + 1) == [True] * ISLANDS


def row(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_a_relay_names_islands_that_do_different_things() -> None:
    relay = Relay(2)
    relay.offer(0, Request(number=0, kind="gather", rows=(row(1),)))
    with pytest.raises(
        TransportError, match=r"islands 0 and 1 disagree on exchange 0: gather against sum \[0.5, 0.5\]"
    ):
        relay.offer(1, Request(number=0, kind="sum", weights=(0.5, 0.5), rows=(row(0, 0, 0, 0),)))


@pytest.mark.parametrize("number", [0, 2])
def test_a_relay_refuses_replays_and_gaps(number: int) -> None:
    relay = Relay(2)
    relay.offer(0, Request(number=0, kind="gather", rows=(row(1),)))
    with pytest.raises(TransportError, match=f"island 0 posted exchange {number}, its next is 1"):
        relay.offer(0, Request(number=number, kind="gather", rows=(row(1),)))
    assert relay.missing() == {0: [1]}


@pytest.mark.parametrize("second", [row(0, 0, 0, 0), row(1, 2, 3), row()])
def test_a_relay_refuses_vectors_of_other_lengths(second: Tensor) -> None:
    relay = Relay(2)
    relay.offer(0, Request(number=0, kind="sum", weights=(0.5, 0.5), rows=(torch.zeros(8, dtype=torch.uint8),)))
    with pytest.raises(TransportError):
        relay.offer(1, Request(number=0, kind="sum", weights=(0.5, 0.5), rows=(second,)))


@pytest.mark.parametrize("kind", ["gather", "swap", "sum", "broadcast"])
def test_a_relay_refuses_a_request_with_the_wrong_number_of_rows(kind: str) -> None:
    relay = Relay(3)
    weights = (0.5, 0.25, 0.25) if kind == "sum" else ()
    with pytest.raises(TransportError, match="rows"):
        relay.offer(0, Request(number=0, kind=kind, weights=weights, rows=(row(1), row(2), row(3), row(4))))
    with pytest.raises(TransportError, match="weights"):
        Relay(3).offer(0, Request(number=0, kind="sum", weights=(1.0,), rows=(row(0, 0, 0, 0),)))


def test_a_row_of_another_size_than_agreed_is_refused() -> None:
    def gather(transport: Relayed) -> None:
        with pytest.raises(TransportError, match=r"8 bytes came where 16 were due|16 bytes came where 8 were due"):
            transport.gather([torch.zeros(1 + transport.local[0], dtype=torch.int64)])

    on_threads(2, gather)


def adapters(rule: LoraRule, transport: Transport, models: Sequence[nn.Module]) -> str:
    """Digest of the global adapters after two rounds; the first local model's batches are those of its island."""
    inners = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.05) for m in models]
    sync = LocalSGD(models, inners, every=2, outer=SGD(lr=1.0), aggregator=rule, transport=transport)
    for step in range(4):
        for i, (model, inner) in enumerate(zip(models, inners, strict=True)):
            island = transport.local[i]
            ids = lora_toy.batch(island, step)
            model(input_ids=ids, labels=ids).loss.backward()
            sync.count_tokens(1 + island, i)
            inner.step()
            inner.zero_grad()
    sync.finish()
    return sha256_weights(sync.weights())


@pytest.mark.parametrize("rule", LORA_RULES, ids=name)
def test_every_lora_rule_gives_the_bits_of_the_simulation(rule: LoraRule) -> None:
    train = "B" if isinstance(rule, FFA) else "core" if isinstance(rule, FedSB) else "AB"
    tuning = lora_toy.lora(rule, ("q_proj", "v_proj"), train)

    def models(count: int) -> list[nn.Module]:
        return [lora_toy.tuned(lora_toy.llama(), tuning) for _ in range(count)]

    expected = adapters(rule, Simulated(4), models(4))
    ready = models(4)
    found = on_threads(4, lambda transport: adapters(rule, transport, [ready[transport.local[0]]]))
    assert found == [expected] * 4
