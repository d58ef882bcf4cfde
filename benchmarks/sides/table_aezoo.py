"""aezoo by its public API. PyOD's network has norm, activation and dropout on the code, too: a backbone of four blocks says so."""

import torch
from common import LR, Report, arguments, squared_error, table
from torch import nn

import aezoo
from aezoo.backbones import BACKBONES, Backbone, Block, Blocks

args = arguments(epochs=4, batch=32)
report = Report(args, "aezoo", "torch")


@BACKBONES.register("pyod_net")
class PyODNet(Backbone):
    """D-64-K-64-D; linear, batch norm, ReLU and dropout in every layer but the last."""

    def build(self, input_shape, latent_dim, code_params=1, num_params=1):
        (dims,) = input_shape
        hidden = {"activation": "relu", "norm": "batch", "dropout": 0.2}
        encoder = Blocks(
            Block(nn.Linear(dims, 64), 64, **hidden), Block(nn.Linear(64, latent_dim), latent_dim, **hidden)
        )
        last = Block(nn.Linear(64, num_params * dims), dims, after=(num_params, dims))
        return encoder, Blocks(Block(nn.Linear(latent_dim, 64), 64, **hidden), last)


rows = table(args)
torch.manual_seed(0)
models = [aezoo.create_model("ae", input_shape=(32,), latent_dim=32, backbone="pyod_net") for _ in range(args.many)]
model = models[0]
settings = {
    "epochs": args.epochs,
    "batch_size": args.batch,
    "lr": LR,
    "device": args.device,
    "precision": args.precision,
    "progress": False,
}
report.start()
if args.many > 1:
    aezoo.fit_many(models, rows, **settings)
else:
    aezoo.fit(model, rows, compile=args.compile or "auto", callbacks=report.epoch, **settings)
report.trained()
x = torch.from_numpy(rows).to(args.device)
model.to(args.device).eval()


@torch.no_grad()
def score() -> torch.Tensor:
    return (model.reconstruct(x) - x).square().sum(1).sqrt().cpu()


report.scoring(score)
loss = squared_error(rows, model.reconstruct, args.device)
report.write(loss=loss, threads=torch.get_num_threads())
