"""THE list of methods: every property test runs over it. A new method is one line here."""

from __future__ import annotations

from lowcomm.aggregate import (
    AFL,
    NNM,
    QFFL,
    RFFL,
    SMEA,
    Aggregator,
    Bucketing,
    CentredClipping,
    EDiT,
    FedCPA,
    FedFB,
    Flag,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Mixing,
    MoNNA,
    NormBound,
    Shapley,
    SybilWall,
    TrimmedMean,
    Trust,
)
from lowcomm.aggregate.lora import (
    FFA,
    Cellm,
    FedEx,
    FedIT,
    FedRand,
    FedSA,
    FedSB,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    HLoRA,
    LoraFair,
    LoraRule,
    RoLoRA,
    SenderMean,
)
from lowcomm.arrival import (
    AEdit,
    Anarchic,
    AnarchicSilos,
    ArrivalRule,
    BackupWorkers,
    Decoupled,
    FedBuff,
    FedCompass,
    Timed,
    TokenBatch,
    TurnStale,
)
from lowcomm.attack import (
    ALIE,
    DMPA,
    Attack,
    CollectiveAction,
    FreeRider,
    Gaussian,
    InnerProduct,
    LabelNoise,
    NotANumber,
    Replay,
    Scaling,
    SignFlip,
)
from lowcomm.codec import (
    BF16,
    Ans,
    Codec,
    DctTopK,
    EitherFactor,
    ErrorFeedback,
    FedZip,
    Fp8,
    Fp32,
    Graded,
    Int4,
    Int8,
    InTurn,
    LargestLayers,
    Lion,
    LocalResidual,
    Packed,
    PartialSharing,
    PowerSGD,
    RandomK,
    Rqm,
    Shared,
    Sign,
    Threshold,
    TopK,
    TwoBit,
    Zstd,
)
from lowcomm.codec.parts import Parts
from lowcomm.data import ByLength, Dirichlet, Iid, NaturalId, Partition, Pathological, Quantity
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.island import AdamW, Gpa, Inner, Muon, Savic, Soap
from lowcomm.island import Lion as InnerLion
from lowcomm.local import (
    Baffle,
    DesLoc,
    Estimate,
    FedProx,
    Objective,
    OneByte,
    RankDecay,
    Scaffold,
    SelectLayers,
    SharpnessAware,
)
from lowcomm.mixing import (
    Cooperation,
    Game,
    GASLoC,
    NetworkLasso,
    NoLoCo,
    Overlapped,
    PlainMixing,
    Rule,
    VarianceCorrected,
)
from lowcomm.outer import (
    SGD,
    DelayedNesterov,
    FedAdagrad,
    FedAdam,
    FedYogi,
    HeavyBall,
    HeLoCo,
    Nesterov,
    Outer,
    Pier,
    ScheduleFree,
)
from lowcomm.outer import Lion as OuterLion
from lowcomm.privacy import AdaptiveClip, ClientGaussian, ExampleGaussian, Mechanism
from lowcomm.sampling import FixedSize, Poisson, Sampling
from lowcomm.schedule import (
    Adaptive,
    Eager,
    EveryH,
    EveryStep,
    Growing,
    LateMerge,
    OneStepDelay,
    PostLocal,
    Schedule,
    Streaming,
)
from lowcomm.topology import (
    BarabasiAlbert,
    Churn,
    Complete,
    Edges,
    Exponential,
    Loss,
    Multigraph,
    OnePeer,
    RandomPairs,
    RandomRegular,
    Ring,
    Topology,
    Torus,
)

OUTERS: tuple[Outer, ...] = (
    SGD(lr=1.0),
    HeavyBall(lr=0.7, momentum=0.6),
    Nesterov(lr=0.7, momentum=0.9),
    FedAdagrad(lr=0.01),
    FedAdam(lr=0.01),
    FedYogi(lr=0.01),
    DelayedNesterov(lr=0.7, momentum=0.6, every=3, spread=0.2),
    HeLoCo(lr=0.7, momentum=0.6),
    Pier(warmup_rounds=2, decay_from=3, decay_rounds=2),
    ScheduleFree(lr=1.0),
    OuterLion(lr=0.01),
)

SCHEDULES: tuple[Schedule, ...] = (
    EveryH(),
    EveryStep(),
    PostLocal(warmup_steps=3),
    Streaming(fragments=3, by="size"),
    Streaming(fragments=2, delay=1, by="size"),
    Streaming(fragments=1, delay=3, alpha=0.5),
    OneStepDelay(),
    Eager(gain=1.2),
    Adaptive(shortest=2, longest=8, step_s=0.001, link_mbit=10.0),
    LateMerge(steps=14, merges=2),
    Growing(growth=1.3, longest=8),
)

INNERS: tuple[Inner, ...] = (
    AdamW(lr=0.02),
    InnerLion(lr=0.005),
    Muon(lr=0.02),
    Soap(lr=0.02, every_steps=3),
    Gpa(lr=0.02),
    Savic(lr=0.02, scale_every=4),
)

ESTIMATES: tuple[Estimate, ...] = (OneByte(), OneByte(probes=2, bits=32), Baffle(probes=3))

OBJECTIVES: tuple[Objective, ...] = (
    FedProx(mu=0.1),
    Scaffold(),
    RankDecay(),
    SelectLayers(budget_bytes=256),
    SharpnessAware(),
)

MOMENTS: tuple[DesLoc, ...] = (DesLoc(first_every=1, second_every=2),)

SAMPLINGS: tuple[Sampling, ...] = (FixedSize(count=2), Poisson(rate=0.4))

AGGREGATORS: tuple[Aggregator, ...] = (
    Mean(),
    Mean(by="uniform"),
    Krum(faulty=0),
    Krum(faulty=0, best=3),
    Median(),
    TrimmedMean(),
    GeometricMedian(),
    CentredClipping(),
    NormBound(),
    NNM() | TrimmedMean(),
    NNM() | CentredClipping(),
    Bucketing() | TrimmedMean(faulty=0),
    RFFL(),
    MoNNA(),
    EDiT(spike=1.5, warmup_rounds=1, radius=0.5),
    Flag(),
    SMEA(),
    SybilWall(),
    FedCPA(),
    Trust(),
    Shapley(),
    QFFL(),
    AFL(),
    FedFB(),
)
MIXINGS: tuple[Mixing, ...] = (NNM(), Bucketing(), NNM() | Bucketing())
ATTACKS: tuple[Attack, ...] = (
    SignFlip(),
    Scaling(),
    Gaussian(),
    ALIE(islands=(1,)),
    DMPA(islands=(0, 2)),
    InnerProduct(islands=(0, 3)),
    LabelNoise(),
    CollectiveAction(),
    FreeRider(),
    Replay(),
    NotANumber(),
)
TOPOLOGIES: tuple[Topology, ...] = (
    Ring(),
    Exponential(),
    RandomPairs(),
    Complete(),
    Torus(),
    RandomRegular(),
    BarabasiAlbert(),
    OnePeer(),
    Edges(pairs=((0, 1), (2, 1), (2, 3), (3, 4), (4, 5)), links=(0.5, 0.25, 0.5, 0.25, 0.5)),
    Multigraph(overlay=Torus(), longest=3),
)
RULES: tuple[Rule, ...] = (
    PlainMixing(),
    Overlapped(),
    NoLoCo(),
    GASLoC(),
    VarianceCorrected(),
    Cooperation(),
    NetworkLasso(),
    Game(),
)


MECHANISMS: tuple[Mechanism, ...] = (
    ClientGaussian(clip=0.5, seed=1),
    AdaptiveClip(clip=0.5, noise_multiplier=0.8, seed=1),
    ExampleGaussian(clip=0.5, seed=1),
)

ARRIVALS: tuple[ArrivalRule, ...] = (
    FedBuff(size=2),
    FedBuff(size=1, weights="unbiased", staleness="constant"),
    FedBuff(size=2, turn=TurnStale()),
    Timed(every_s=5.0),
    Timed(every_s=6.0, weights="identical", staleness="polynomial"),
    Decoupled(),
    Decoupled(quorum=0.7, slack=0.5),
    TokenBatch(tokens=40),
    FedBuff(size=3, even=True),
    Anarchic(size=2, nominal_steps=4),
    AnarchicSilos(nominal_steps=4),
    AEdit(size=2, warm_up=2),
    BackupWorkers(least=0.3),
    FedCompass(least_steps=2, most_steps=8),
)

EXCHANGES: tuple[ExchangeChoice, ...] = (
    Gossip(),
    Gossip(topology=RandomPairs(), gamma=0.5),
    Gossip(topology=OnePeer(), rule=NoLoCo()),
    Gossip(memory=0.9, churn=Churn(losses=(Loss(round=1, nodes=(0,), links=((1, 2),), rounds=2),), relays=(3,))),
    Modest(sample=2),
    Buffered(size=1, speeds=(1.0, 0.5, 0.3)),
    Buffered(size=2, speeds=(0.3, 1.0, 1.0)),
    Buffered(size=5, staleness="constant", max_staleness=1, speeds=(0.9, 0.7, 0.2)),
    *(Buffered(rule=rule, goes_on="own", speeds=(1.0, 0.5, 0.3)) for rule in ARRIVALS),
)

LORA_RULES: tuple[LoraRule, ...] = (
    FedIT(rank=4),
    FedIT(rank=4, alpha=3.0, rslora=True, ranks=(4, 2, 1, 4)),
    FFA(rank=4),
    RoLoRA(rank=4),
    FLoRA(rank=4, ranks=(4, 2, 1, 4)),
    FedEx(rank=4),
    FedEx(rank=4, rslora=True, ranks=(2, 4, 3, 4)),
    FlexLoRA(rank=6, ranks=(6, 2, 1, 4)),
    HLoRA(rank=6, rslora=True, ranks=(6, 2, 1, 4)),
    HetLoRA(rank=4, ranks=(4, 2, 1, 4)),
    FedSA(rank=4),
    LoraFair(rank=4),
    FedRand(rank=4),
    SenderMean(rank=4),
    Cellm(rank=4),
    FedSB(rank=4),
)

CODECS: tuple[Codec, ...] = (
    Fp32(),
    BF16(),
    Fp8(),
    Int8(),
    Int8(block=64, rounding="stochastic"),
    Int8(exchange="gather"),
    Int4(),
    TwoBit(),
    Sign(),
    Sign(vote=True),
    ErrorFeedback(codec=Int4()),
    ErrorFeedback(codec=Sign(block=32), beta=0.9, dtype="int8"),
    TopK(),
    TopK(bits=8, chunk=100, k=7),
    ErrorFeedback(codec=TopK(chunk=64, k=8), beta=0.95),
    ErrorFeedback(codec=RandomK(bits=16, chunk=64, k=8)),
    RandomK(bits=8, unbiased=True),
    ErrorFeedback(codec=PartialSharing(chunk=32, k=8, bits=16, apart=True)),
    PartialSharing(),
    Threshold(),
    ErrorFeedback(codec=Threshold(bits=8, rms=1.5)),
    PowerSGD(rank=1),
    ErrorFeedback(codec=PowerSGD(rank=2, bits=8, energy=0.9)),
    DctTopK(),
    ErrorFeedback(codec=DctTopK(k=256, bits=8)),
    FedZip(k=512),
    FedZip(k=512, coder="huffman"),
    Rqm(clip=0.1),
    Lion(),
    ErrorFeedback(codec=Lion(exchange="gather")),
    ErrorFeedback(codec=TopK(chunk=64, k=8) | Int8() | Zstd()),
    Packed(first=Int4(), stage=Ans()),
    DctTopK() | Int4(),
    Graded(codecs=(Int4(), TwoBit())),
    ErrorFeedback(codec=Graded()),
    LocalResidual(codec=TopK(chunk=64, k=8)),
    InTurn(),
    Shared(codec=Int4()),
    EitherFactor(codec=Int8()),
    LargestLayers(),
)

PARTITIONS: tuple[Partition, ...] = (
    Iid(),
    NaturalId(),
    Dirichlet(),
    Dirichlet(alpha=0.2),
    Quantity(alpha=2.0),
    Pathological(),
    Pathological(labels_per_client=4),
    ByLength(),
)


def name(method: object) -> str:
    """A test id: the class and its settings, without what would upset a shell."""
    return repr(method).translate(str.maketrans({" ": None, "'": None, "[": "(", "]": ")"}))


def whole_codecs() -> list[Codec]:
    """Those that send every tensor; the others need a LoRA rule and adapters, and test_lora_run.py trains with them."""
    return [c for c in CODECS if not isinstance(c, Parts)]
