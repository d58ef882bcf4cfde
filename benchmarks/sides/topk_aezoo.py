"""aezoo's topk_sae, by its public API; its weights start where those of all sides do."""

import torch
from common import KEPT, LATENTS, LR, Report, activations, arguments, dictionary, unexplained

import aezoo

args = arguments(epochs=4, batch=1024, samples=8192)
report = Report(args, "aezoo", "torch")
x = activations(args.samples, seed=0)
model = aezoo.create_model("topk_sae", aux_k=0, input_shape=(768,), latent_dim=LATENTS, k=KEPT)
with torch.no_grad():
    for half in (model.encoder, model.decoder):
        half.weight.copy_(dictionary(args))
report.start()
aezoo.fit(
    model,
    x,
    epochs=args.epochs,
    batch_size=args.batch,
    lr=LR,
    device=args.device,
    precision=args.precision,
    callbacks=report.epoch,
    progress=False,
)
report.trained()
report.write(loss=unexplained(model.to(args.device).reconstruct, args.device), threads=torch.get_num_threads())
