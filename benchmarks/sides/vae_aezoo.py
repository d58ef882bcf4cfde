"""aezoo, by its public API."""

import torch
from common import LR, Report, arguments, images, torch_bound

import aezoo

args = arguments()
report = Report(args, "aezoo", "torch")
size, backbone = (20, "mlp(widths=(400,))") if args.net == "mlp" else (32, "conv(widths=(32, 64, 128))")
torch.manual_seed(0)
model = aezoo.create_model("vae", input_shape=(1, 28, 28), latent_dim=size, likelihood="bernoulli", backbone=backbone)
report.start()
aezoo.fit(
    model,
    images(args).reshape(-1, 1, 28, 28),
    epochs=args.epochs,
    batch_size=args.batch,
    lr=LR,
    device=args.device,
    precision=args.precision,
    callbacks=report.epoch,
    progress=False,
)
report.trained()
loss = torch_bound(args, lambda x: model.posterior(model.encoder(x)), model.decode)
report.write(loss=loss, threads=torch.get_num_threads())
