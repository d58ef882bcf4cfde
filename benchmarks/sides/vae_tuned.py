"""The best plain-torch loop one can write by hand: one uint8 tensor, `index_select` batches scaled after the gather, fused Adam, no
DataLoader, no `.item()`, and glibc told to keep freed memory."""

import torch
from common import LR, Report, arguments, images, keep_freed_memory, torch_bound
from nets import vae

args = arguments()
keep_freed_memory()
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")  # TF32 on a GPU; nothing on a CPU
report = Report(args, "torch")
x = torch.from_numpy(images(args)).view(-1, 1, 28, 28).to(args.device)
model = vae(args.net).to(args.device)
layout = torch.contiguous_format
if args.net == "conv":
    layout = torch.channels_last
    model = model.to(memory_format=layout)
optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.precision == "bf16")

report.start()
for _ in range(args.epochs):
    for index in torch.randperm(len(x), device=x.device).split(args.batch):
        batch = x.index_select(0, index).to(torch.float32, memory_format=layout).div_(255)
        with autocast:
            loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    report.epoch()
report.trained()
report.write(loss=torch_bound(args, model.posterior, model.probabilities), threads=torch.get_num_threads())
