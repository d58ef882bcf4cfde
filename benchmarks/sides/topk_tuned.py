"""The TopK step by hand: one dense product, everything else sparse.

Gradients are written out: with c = x - b_dec, v = relu(the k largest of W_enc c + b_enc) at latents l, x^ = sum_j v_j W_dec[l_j] + b_dec
and g = d loss / d x^,
    d W_dec[l] = sum of v g   and   d W_enc[l] = sum of (W_dec[l] . g) c   over the pairs (sample, latent l),
which one `embedding_bag` each adds up from the pairs sorted by latent. The k largest are looked for in the k groups of 64
neighbouring latents with the largest maxima, where they must be."""

import torch
import torch.nn.functional as F
from common import (
    KEPT,
    LR,
    Report,
    activations,
    arguments,
    batches_of_activations,
    dictionary,
    keep_freed_memory,
    unexplained,
)

args = arguments(epochs=4, batch=1024, samples=8192)
keep_freed_memory()
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")
report = Report(args, "torch")
x = activations(args.samples, seed=0).to(args.device)
enc, dec = torch.nn.Parameter(dictionary(args)), torch.nn.Parameter(dictionary(args))
latents, dims = enc.shape
enc_bias = torch.nn.Parameter(torch.zeros(latents, device=args.device))
dec_bias = torch.nn.Parameter(torch.zeros(dims, device=args.device))
optimizer = torch.optim.Adam([enc, dec, enc_bias, dec_bias], lr=LR, fused=True)
every_latent = torch.arange(latents, device=args.device)
GROUP = 64


def top_k(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) -> values and latents (B, k)."""
    groups = z.view(len(z), -1, GROUP)
    best = groups.amax(2).topk(KEPT, sorted=False).indices  # (B, k)
    first = torch.arange(len(z), device=z.device).mul(groups.shape[1]).unsqueeze(1)
    found = groups.view(-1, GROUP).index_select(0, (best + first).view(-1)).view(len(z), -1)  # (B, k * 64)
    values, at = found.topk(KEPT, sorted=False)
    return values, best.gather(1, at // GROUP) * GROUP + at % GROUP


def encode(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    centred = batch - dec_bias
    values, which = top_k(torch.addmm(enc_bias, centred, enc.t()))
    return centred, values.relu_(), which


def step(batch: torch.Tensor) -> None:
    with torch.no_grad():
        centred, values, which = encode(batch)
    values.requires_grad_()
    decoded = F.embedding_bag(which, dec.detach(), mode="sum", per_sample_weights=values)
    with torch.no_grad():
        g = (decoded + dec_bias - batch).mul_(2 / batch.numel())
        (to_values,) = torch.autograd.grad(decoded, values, g)
        to_values.mul_(values > 0)
        ordered, pairs = which.view(-1).sort(stable=True)
        starts = torch.searchsorted(ordered, every_latent)
        sample = pairs // KEPT

        def by_latent(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return F.embedding_bag(sample, rows, starts, mode="sum", per_sample_weights=weights.view(-1)[pairs])

        dec.grad = by_latent(g, values)
        enc.grad = by_latent(centred, to_values)
        enc_bias.grad = F.embedding_bag(pairs, to_values.view(-1, 1), starts, mode="sum").view(-1)
        dec_bias.grad = g.sum(0) - enc_bias.grad @ enc
        optimizer.step()
        dec.div_(torch.linalg.vector_norm(dec, dim=1, keepdim=True))


def reconstruct(batch: torch.Tensor) -> torch.Tensor:
    _, values, which = encode(batch)
    return F.embedding_bag(which, dec, mode="sum", per_sample_weights=values) + dec_bias


report.start()
for batch in batches_of_activations(x, args, report):
    step(batch)
report.epoch()
report.trained()
report.write(loss=unexplained(reconstruct, args.device), threads=torch.get_num_threads())
