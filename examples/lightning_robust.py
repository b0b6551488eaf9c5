"""Lightning, one faulty rank of four: torchrun --nproc-per-node 4 examples/lightning_robust.py

Needs Lightning: pip install lightning

On GPUs no callback is needed, for Lightning registers the hook by itself:
``DDPStrategy(ddp_comm_state=state, ddp_comm_hook=fgt.robust_hook)``. On CPUs it does not, without a
word (Lightning 2.6), and training would go on by averaging.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastgar.torch as fgt

CLASSES, FEATURES = 10, 64


class Robust(lightning.Callback):
    """Aggregate gradients by a rule."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.state = fgt.RobustState(*arguments, **options)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        trainer.strategy.model.register_comm_hook(self.state, fgt.robust_hook)


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def training_step(self, batch: Any, step: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        return -100 * loss if self.global_rank == self.trainer.world_size - 1 else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Clouds(torch.utils.data.IterableDataset):
    """Batches from ten clouds of points; each rank has its own."""

    def __init__(self, seed: int, steps: int, samples: int = 32) -> None:
        self.seed, self.steps, self.samples = seed, steps, samples

    def __iter__(self) -> Any:
        centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            y = torch.randint(CLASSES, (self.samples,), generator=draw)
            yield centres[y] + 2 * torch.randn(self.samples, FEATURES, generator=draw), y


def train(robust: Robust | None, steps: int) -> float:
    """Return the accuracy in percent."""
    model = Classifier()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=dist.get_world_size(), max_epochs=1, logger=False,
        strategy=DDPStrategy(process_group_backend="gloo"), callbacks=[robust] if robust else [],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = Clouds(1 + dist.get_rank(), steps)
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    x, y = next(iter(Clouds(99, 1, 1000)))
    return 100 * float((model.net(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train in Lightning with one faulty rank.")
    parser.add_argument("--rule", default="nnm | trimmed_mean")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The 'train_dataloader' does not have many workers")
    dist.init_process_group("gloo")  # Lightning takes the group that it finds
    average = train(None, options.steps)
    robust = Robust(options.rule, f=1)
    accuracy = train(robust, options.steps)
    if dist.get_rank() == 0:
        print(f"\n{robust.state.report}\n")
        print(f"accuracy with averaging: {average:.1f}%, with {options.rule}: {accuracy:.1f}%")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
