"""The bare replay of one CUDA graph a step: what a GPU can do at most with these kernels. Needs a GPU.

The graph holds the whole step: gather, scaling, forward, backward, fused Adam. Per step the host copies 128 indices (on the
device already) into the graph's input and replays it."""

import torch
from common import LR, Report, arguments, images, torch_bound
from nets import vae

args = arguments(device="cuda")
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")
report = Report(args, "torch")
x = torch.from_numpy(images(args)).view(-1, 1, 28, 28).to(args.device)
model = vae(args.net).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True, capturable=True)
index = torch.randperm(len(x), device=x.device)[: args.batch]


def step() -> None:
    batch = x.index_select(0, index).to(torch.float32).div_(255)
    with torch.autocast("cuda", torch.bfloat16, enabled=args.precision == "bf16", cache_enabled=False):
        loss = model.loss(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


report.start()
start = {k: v.clone() for k, v in model.state_dict().items()}
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for _ in range(3):  # warm-up, as capturing asks for
        step()
torch.cuda.current_stream().wait_stream(side)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    step()
with torch.no_grad():  # as if the warm-up had not been
    for name, value in model.state_dict().items():
        value.copy_(start[name])
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()

for _ in range(args.epochs):
    order = torch.randperm(len(x), device=x.device)
    for at in range(0, len(x) - args.batch + 1, args.batch):  # the last 96 samples of MNIST do not fill a batch
        index.copy_(order[at : at + args.batch])
        graph.replay()
    report.epoch()
report.trained()
report.write(loss=torch_bound(args, model.posterior, model.probabilities), threads=torch.get_num_threads())
