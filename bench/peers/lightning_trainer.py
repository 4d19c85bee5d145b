"""Lightning's Trainer on the notebook's loaders, with nothing on that is not needed: no logger, bar or checkpoint."""

import logging
import warnings
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, optim
from torch.nn import functional as F

from bench.peers.notebook import loaders
from bench.peers.run import LR, Run, main
from bench.peers.torch_net import make_net


class Module(lightning.LightningModule):
    """The net, with the steps that Lightning calls."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.net, self.run = make_net(run.net), run

    def training_step(self, batch: Any) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images).float(), labels)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.run.note()

    def validation_step(self, batch: Any) -> None:
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def on_validation_end(self) -> None:
        self.run.note()

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.Adam(self.parameters(), lr=LR)


def train(run: Run) -> npt.NDArray[np.int64]:
    """Return the predicted class of each test image."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # about few workers
    lightning.seed_everything(run.seed, verbose=False)
    torch.set_num_threads(run.threads)
    load, module = loaders(run), Module(run)
    trainer = lightning.Trainer(
        max_epochs=run.epochs,
        accelerator="cpu",
        precision="32-true" if run.precision == "float32" else "bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, load["train"], load["valid"])
    module.eval()
    with torch.no_grad():
        return torch.cat([module.net(images).argmax(1) for images, _ in load["test"]]).numpy()


if __name__ == "__main__":
    main(train)
