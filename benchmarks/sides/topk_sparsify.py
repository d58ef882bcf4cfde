"""EleutherAI's sparsify: its SparseCoder, and the step of its Trainer (which itself wants a language model) with its Adam."""

import os
import sys

if "cuda" not in " ".join(sys.argv):
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its Triton decoder takes CUDA tensors only

import torch
from common import KEPT, LATENTS, LR, Report, activations, arguments, batches_of_activations, dictionary, unexplained
from sparsify import SparseCoder, SparseCoderConfig

args = arguments(epochs=4, batch=1024, samples=8192)
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")
report = Report(args, "eai-sparsify", "torch")
x = activations(args.samples, seed=0).to(args.device)
sae = SparseCoder(768, SparseCoderConfig(num_latents=LATENTS, k=KEPT), device=args.device, dtype=torch.float32)
with torch.no_grad():
    sae.encoder.weight.copy_(dictionary(args))
    sae.W_dec.copy_(dictionary(args))
optimizer = torch.optim.Adam(sae.parameters(), lr=LR)
did_fire = torch.zeros(LATENTS, dtype=torch.bool, device=args.device)
since_fired = torch.zeros(LATENTS, dtype=torch.long, device=args.device)

report.start()
for batch in batches_of_activations(x, args, report):
    sae.set_decoder_norm_to_unit_norm()
    out = sae(batch)
    did_fire[out.latent_indices.flatten()] = True
    float(out.fvu.detach())
    out.fvu.backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        since_fired += len(batch)
        since_fired[did_fire] = 0
        did_fire.zero_()
report.epoch()
report.trained()
sae.set_decoder_norm_to_unit_norm()
report.write(loss=unexplained(lambda x: sae(x).sae_out, args.device), threads=torch.get_num_threads())
