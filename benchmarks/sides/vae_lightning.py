"""PyTorch Lightning, with everything off that can be off: no checkpoints, logger, bar or summary; float tensors in a TensorDataset."""

import logging
import warnings

import pytorch_lightning as pl
import torch
from common import LR, Report, arguments, float_images, torch_bound
from nets import vae
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
args = arguments()
torch.manual_seed(0)
report = Report(args, "pytorch-lightning", "torch")


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vae = vae(args.net)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.vae.loss(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LR)

    def on_train_epoch_end(self) -> None:
        report.epoch()


data = TensorDataset(torch.from_numpy(float_images(args)).view(-1, 1, 28, 28))
module = Module()
trainer = pl.Trainer(
    max_epochs=args.epochs,
    accelerator="gpu" if args.device.startswith("cuda") else "cpu",
    devices=1,
    precision="bf16-mixed" if args.precision == "bf16" else "32-true",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
report.start()
trainer.fit(module, DataLoader(data, batch_size=args.batch, shuffle=True))
report.trained()
model = module.vae.to(args.device)
report.write(loss=torch_bound(args, model.posterior, model.probabilities), threads=torch.get_num_threads())
