"""What test_integrations.py runs in real processes: trainers of other libraries whose processes are islands.

Each job writes what it saw to OUT/RANK.json; all paths are under OUT.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import lowcomm as lc
from lowcomm.integrations import example
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import saved
from lowcomm.types import CheckpointError, ConfigError

OUTER = lc.outer.Nesterov(lr=0.7, momentum=0.6)
CODEC = lc.codec.ErrorFeedback(codec=lc.codec.Int4())
EVERY, STEPS, STOP = 4, 20, 10


def digest(model: nn.Module) -> str:
    return sha256_weights({n: p.detach() for n, p in model.named_parameters()})


def island_size() -> int:
    """Ranks of each of the two islands of a job."""
    return int(os.environ["WORLD_SIZE"]) // 2


def message(run: Callable[[], object]) -> str:
    try:
        run()
    except (ConfigError, CheckpointError) as error:
        return str(error)
    return "nothing was refused"


def hf(out: Path, text: str) -> dict[str, Any]:
    """Straight, stopped inside a round, resumed; evaluation and checkpoints; what is refused."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lowcomm.integrations.hf import LowCommCallback

    data = example.load_text(text)
    rows, seen = example.rows(data, 64), dict[str, Any]()

    class Watch(TrainerCallback):
        def __init__(self, stop_at: int | None) -> None:
            self.stop_at, self.own = stop_at, dict[int, str]()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop |= state.global_step == self.stop_at

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.own[state.global_step] = digest(others["model"])

    def arguments(name: str, **changes: Any) -> TrainingArguments:
        fields = {"max_steps": STEPS, "save_steps": STOP, "eval_strategy": "steps", "eval_steps": STOP, **changes}
        return TrainingArguments(
            output_dir=str(out / name),
            per_device_train_batch_size=2,
            per_device_eval_batch_size=2,
            learning_rate=1e-3,
            logging_steps=5,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **fields,
        )

    def make(name: str, stop_at: int | None = None, **changes: Any) -> tuple[Trainer, LowCommCallback, Watch]:
        callback = LowCommCallback(every=EVERY, outer=OUTER, codec=CODEC, island_size=island_size())
        watch = Watch(stop_at)
        trainer = Trainer(
            model=example.nano(data),
            args=arguments(name, **changes),
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            eval_dataset=rows[:8],  # pyright: ignore[reportArgumentType]
            callbacks=[callback, watch],
        )
        return trainer, callback, watch

    whole, callback, watch = make("whole")
    whole.train()
    assert callback.sync is not None
    seen["whole"] = digest(whole.model)
    seen["own"] = watch.own
    seen["log"] = whole.state.log_history
    seen["ddp_ranks"] = dist.get_process_group_ranks(whole.model_wrapped.process_group)  # pyright: ignore
    seen["rounds"], seen["bytes_sent"] = callback.sync.round, callback.sync.transport.sent_bytes[0]
    make("parts", STOP)[0].train()
    again, callback, watch = make("parts")
    again.train(resume_from_checkpoint=True)
    assert callback.sync is not None
    seen["parts"] = digest(again.model)
    seen["parts_own"] = watch.own
    seen["parts_bytes_sent"] = callback.sync.transport.sent_bytes[0]
    elsewhere = str(out / "whole" / f"checkpoint-{STOP}")
    seen["refused"] = {
        "elsewhere": message(lambda: make("nowhere")[0].train(resume_from_checkpoint=elsewhere)),
        "fp16": message(lambda: arguments_of_fp16(make)),
        "twice": message(lambda: again.train()),
        "batch size": message(lambda: make("auto", auto_find_batch_size=True)),
    }
    seen["sft"] = sft(out, data)
    return seen


def hf_apart(out: Path, text: str) -> dict[str, Any]:
    """A save that a later callback asks for, a rank that stops alone, sites with data of their own."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from lowcomm.integrations.hf import LowCommCallback

    data, rank, seen = example.load_text(text), int(os.environ["RANK"]), dict[str, Any]()
    rows = example.rows(data, 32)

    def make(name: str, watch: Any, train: Any, **changes: Any) -> tuple[Trainer, LowCommCallback]:
        callback = LowCommCallback(every=EVERY, outer=OUTER, own_data=bool(changes.pop("own_data", False)))
        fields = {"max_steps": 12, "save_strategy": "no", "logging_steps": 5, **changes}
        args = TrainingArguments(
            output_dir=str(out / name), per_device_train_batch_size=2, report_to="none", use_cpu=True,
            disable_tqdm=True, **fields,
        )  # fmt: skip
        own = [callback] if watch is None else [callback, watch]
        trainer = Trainer(
            model=example.nano(data), args=args, train_dataset=train, eval_dataset=rows[:8], callbacks=own
        )
        return trainer, callback

    class Asks(TrainerCallback):
        """Saves after step 6, and looks at the weights where only a callback does."""

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 6:
                control.should_save = True
                trainer.save_model(str(out / f"copy-{rank}"))
                seen["evaluated"] = trainer.evaluate()["eval_loss"]

    trainer, callback = make("asks", Asks(), rows)
    trainer.train()
    seen["whole"] = digest(trainer.model)
    again, _ = make("asks", None, rows)
    again.train(resume_from_checkpoint=str(out / "asks" / "checkpoint-6"))
    seen["resumed"] = digest(again.model)

    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop |= rank == 0 and state.global_step == 5

    trainer, callback = make("stops", Stops(), rows)
    trainer.train()
    assert callback.sync is not None
    seen["stopped"] = [trainer.state.global_step, callback.sync.step, digest(trainer.model)]

    class Counts(torch.utils.data.Dataset[Any]):
        def __init__(self, count: int) -> None:
            self.count, self.read = count, list[int]()

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: int) -> Any:
            self.read.append(index)
            return rows[index]

    own = Counts(6 + 4 * rank)
    trainer, callback = make("own", None, own, own_data=True, max_steps=10, eval_strategy="steps", eval_steps=5)
    trainer.train()
    seen["read"], seen["own"] = own.read, digest(trainer.model)
    seen["unequal"] = message(
        lambda: make("unequal", None, Counts(6 + 4 * rank), own_data=True, max_steps=-1)[0].train()
    )
    seen["size"] = message(lambda: LowCommCallback(every=4, island_size=2, own_data=True))
    return seen


def arguments_of_fp16(make: Callable[..., Any]) -> None:
    from lowcomm.integrations.accelerate import check_accelerator

    trainer, _, _ = make("fp16")
    trainer.accelerator.state._mixed_precision = "fp16"  # a CPU has none, so that it can't be asked for
    try:
        check_accelerator(trainer.accelerator)
    finally:
        trainer.accelerator.state._mixed_precision = "no"


def sft(out: Path, data: Any) -> dict[str, Any]:
    """TRL's trainer gathers metrics in every step: here over this island only."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from lowcomm.integrations.hf import LowCommCallback

    data.save_tokenizer(out / f"tokenizer-{dist.get_rank()}")
    tokenizer = AutoTokenizer.from_pretrained(out / f"tokenizer-{dist.get_rank()}")
    tokenizer.pad_token = tokenizer.eos_token
    args = SFTConfig(
        output_dir=str(out / "sft"), max_steps=6, per_device_train_batch_size=2, logging_steps=3, save_strategy="no",
        use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_length=example.SEQ_LEN,
    )  # fmt: skip
    callback = LowCommCallback(every=3, outer=OUTER, island_size=island_size())
    examples = [row["input_ids"].tolist() for row in example.rows(data, 64)]
    trainer = SFTTrainer(
        model=example.nano(data), args=args, train_dataset=Dataset.from_dict({"input_ids": examples}),
        processing_class=tokenizer, callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    assert callback.sync is not None
    return {"weights": digest(callback.sync.replicas[0].model), "log": trainer.state.log_history}


def accelerate(out: Path, text: str) -> dict[str, Any]:
    """Twelve steps straight, and six, saved, six; what is refused."""
    from accelerate import Accelerator

    from lowcomm.integrations.accelerate import attach, confine

    data = example.load_text(text)

    def make() -> tuple[nn.Module, Any, lc.LocalSGD, Any]:
        accelerator = Accelerator(cpu=True)
        confine(accelerator)
        model = example.nano(data)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        sync = attach(accelerator, wrapped, prepared, every=EVERY, outer=OUTER, codec=CODEC)
        return wrapped, prepared, sync, accelerator

    rows = example.rows(data, 64)

    def train(made: tuple[nn.Module, Any, lc.LocalSGD, Any], first: int, last: int) -> None:
        model, optimizer, _, accelerator = made
        for step in range(first, last):
            own = rows[2 * step + dist.get_rank()]
            batch = {key: value[None] for key, value in own.items()}
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()

    whole, half, rest = make(), make(), make()
    train(whole, 0, 12)
    train(half, 0, 6)
    saved.save(half[2].state, out / "state", {"every": EVERY})
    saved.load(rest[2].state, out / "state", 6, {"every": EVERY})
    train(rest, 6, 12)
    model = example.nano(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loose = Accelerator(cpu=True)
    everywhere = loose.prepare(model)
    seen: dict[str, Any] = {
        "refused": message(lambda: attach(loose, everywhere, optimizer, every=EVERY)),
        "size": message(lambda: confine(loose, island_size=3)),
        "other": message(lambda: saved.load(rest[2].state, out / "state", 6, {"every": EVERY + 1})),
        "missing": message(lambda: saved.load(rest[2].state, out / "state", 7, {"every": EVERY})),
    }
    if dist.get_rank() == 1:
        path = next((out / "state").glob("*/island-00001/global.safetensors"))
        path.write_bytes(path.read_bytes()[:-1])
    seen["torn"] = message(lambda: saved.load(rest[2].state, out / "state", 6, {"every": EVERY}))
    for name, made in (("whole", whole), ("rest", rest)):
        seen[f"{name}_own"] = digest(made[2].replicas[0].model)
        made[2].finish()
        seen[name] = digest(made[2].replicas[0].model)
    return seen


def wide(out: Path, text: str) -> dict[str, Any]:
    """Islands of two ranks: gradients are averaged inside, pseudo-gradients between."""
    from accelerate import Accelerator

    from lowcomm.integrations.accelerate import attach, confine

    data = example.load_text(text)
    accelerator = Accelerator(cpu=True)
    confine(accelerator, island_size=2)
    model = example.nano(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    sync = attach(accelerator, wrapped, prepared, every=EVERY, outer=OUTER)
    rows, own = example.rows(data, 64), list[str]()
    for step in range(6):
        batch = {key: value[None] for key, value in rows[4 * step + dist.get_rank()].items()}
        accelerator.backward(wrapped(**batch).loss)
        prepared.step()
        prepared.zero_grad()
        own.append(digest(model))
    sync.finish()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"own": own, "weights": digest(model), "islands": sync.transport.islands, "values": weights.tolist()}


def lightning(out: Path, text: str) -> dict[str, Any]:
    """Two epochs straight, and the second one again from the first one's checkpoint."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader

    from lowcomm.integrations.lightning import LowCommCallback

    data = example.load_text(text)
    rows, seen = example.rows(data, 56), dict[str, Any]()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.own = example.nano(data), dict[int, str]()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.own[self.global_step] = digest(self)
            wrapped: Any = self.trainer.strategy.model
            seen["ddp_ranks"] = dist.get_process_group_ranks(wrapped.process_group)
            return self.model(**batch).loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.setdefault("validated", []).append(digest(self))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def make(name: str, **changes: Any) -> tuple[Trainer, LowCommCallback]:
        callback = LowCommCallback(
            every=EVERY, outer=OUTER, codec=CODEC, directory=out / "lowcomm", island_size=island_size()
        )
        saves = ModelCheckpoint(dirpath=out / name, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
        fields: dict[str, Any] = {"strategy": "ddp", "max_epochs": 2, "callbacks": [saves, callback], **changes}
        trainer = Trainer(
            accelerator="cpu", devices=2 * island_size(), logger=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=out, **fields,
        )  # fmt: skip
        return trainer, callback

    def loaders() -> dict[str, DataLoader[Any]]:
        return {
            "train_dataloaders": DataLoader(rows, batch_size=2, shuffle=True),  # pyright: ignore[reportArgumentType]
            "val_dataloaders": DataLoader(rows[:4], batch_size=2),  # pyright: ignore[reportArgumentType]
        }

    trainer, callback = make("whole")
    module = Module()
    trainer.fit(module, **loaders())
    assert callback.sync is not None
    seen["whole"], seen["own"], seen["rounds"] = digest(module), module.own, callback.sync.round
    checkpoint = torch.load(out / "whole" / "epoch=0.ckpt", weights_only=True)["state_dict"]
    seen["checkpoint"] = sha256_weights({k: v for k, v in checkpoint.items() if k in dict(module.named_parameters())})

    def stand_in(**changes: Any) -> Any:
        return SimpleNamespace(**{"precision": "32-true", "world_size": 2, "strategy": trainer.strategy, **changes})

    again, other = make("parts"), Module()
    again[0].fit(other, **loaders(), ckpt_path=out / "whole" / "epoch=0.ckpt")
    seen["parts"] = digest(other)
    seen["refused"] = {
        "schedule": message(lambda: LowCommCallback(every=4, schedule=lc.schedule.EveryStep())),
        "precision": message(lambda: callback.setup(stand_in(precision="16-mixed"), module, "fit")),
        "strategy": message(lambda: callback.setup(stand_in(strategy="an FSDPStrategy"), module, "fit")),
    }
    return seen


def load_deepspeed() -> Any:
    """The package, without a shared-memory kernel for inference that it would compile on every new machine."""
    import deepspeed as engines

    engines.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]
    return engines


def deepspeed(out: Path, text: str) -> dict[str, Any]:
    """Against the same loop in plain torch; what is refused."""
    import lowcomm.deepspeed

    engines = load_deepspeed()
    engines.init_distributed(dist_backend="gloo", verbose=False)
    data = example.load_text(text)
    rows = example.rows(data, 64)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
    }

    def make(mpu: object, **changes: Any) -> Any:
        model = example.nano(data)
        full = {**config, **changes}
        return engines.initialize(model=model, config=full, model_parameters=model.parameters(), mpu=mpu)[0]

    everywhere = make(None)  # first: DeepSpeed keeps the last mpu for engines that come without one
    world = message(lambda: lowcomm.deepspeed.attach(everywhere, every=EVERY))
    engine = make(lowcomm.deepspeed.islands(size=1))
    sync = lowcomm.deepspeed.attach(engine, every=EVERY, outer=OUTER, codec=CODEC)
    for step in range(10):
        batch = {key: value[None] for key, value in rows[2 * step + dist.get_rank()].items()}
        engine.backward(engine(**batch).loss)
        engine.step()
    own = digest(engine.module)
    sync.finish()
    seen: dict[str, Any] = {"own": own, "weights": digest(engine.module), "bytes_sent": sync.transport.sent_bytes[0]}
    zero = make(lowcomm.deepspeed.islands(size=1), zero_optimization={"stage": 1})
    sync = lowcomm.deepspeed.attach(zero, every=EVERY, outer=OUTER, codec=CODEC)
    for step in range(10):
        batch = {key: value[None] for key, value in rows[2 * step + dist.get_rank()].items()}
        zero.backward(zero(**batch).loss)
        zero.step()
    sync.finish()
    seen["zero"], seen["zero_rounds"] = digest(zero.module), sync.round
    seen["refused"] = {"world": world}
    return seen


def deepspeed_wide(out: Path, text: str) -> dict[str, Any]:
    """Islands of two ranks under ZeRO 2 and 3: straight, and stopped inside a round and gone on in another engine."""
    import lowcomm.deepspeed

    engines = load_deepspeed()
    engines.init_distributed(dist_backend="gloo", verbose=False)
    data = example.load_text(text)
    rows, seen = example.rows(data, 64), dict[str, Any]()

    def make(stage: int) -> tuple[Any, lc.LocalSGD]:
        model = example.nano(data)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
        }
        mpu = lowcomm.deepspeed.islands(size=2)
        engine = engines.initialize(model=model, config=config, model_parameters=model.parameters(), mpu=mpu)[0]
        return engine, lowcomm.deepspeed.attach(engine, every=EVERY, outer=OUTER)

    def train(engine: Any, first: int, last: int) -> None:
        for step in range(first, last):
            batch = {key: value[None] for key, value in rows[4 * step + dist.get_rank()].items()}
            engine.backward(engine(**batch).loss)
            engine.step()

    def values(sync: lc.LocalSGD) -> dict[str, list[float]]:
        return {name: w.flatten().tolist() for name, w in sync.weights().items()}

    seen["refused"] = message(lambda: lowcomm.deepspeed.islands(size=3))
    for stage in (2, 3):
        engine, sync = make(stage)
        train(engine, 0, 6)
        saved.save(sync.state, out / f"zero{stage}", {"stage": stage})
        train(engine, 6, 10)
        sync.finish()
        other, again = make(stage)
        saved.load(again.state, out / f"zero{stage}", 6, {"stage": stage})
        train(other, 6, 10)
        again.finish()
        seen[f"zero{stage}"], seen[f"zero{stage}_again"] = values(sync), values(again)
        seen[f"zero{stage}_rounds"] = sync.round
    return seen


def script(name: str, arguments: list[str]) -> None:
    """One of recipes/integrations, as torchrun would start it."""
    import importlib

    if name == "deepspeed_engine":
        load_deepspeed()
    importlib.import_module(f"recipes.integrations.{name}").main(arguments)


JOBS = {
    "hf": hf,
    "hf_apart": hf_apart,
    "accelerate": accelerate,
    "wide": wide,
    "lightning": lightning,
    "deepspeed": deepspeed,
    "deepspeed_wide": deepspeed_wide,
}


def run(job: str, out: str, text: str) -> int:
    """Run one job in this rank."""
    torch.set_num_threads(1)
    result = JOBS[job](Path(out), text)
    (Path(out) / f"{os.environ['RANK']}.json").write_text(json.dumps(result), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0
