"""The best plain-torch loop for PyOD's network: `index_select` batches, fused Adam, no DataLoader, no `.item()`; --compile compiles
the whole of forward and backward."""

import torch
from common import LR, Report, arguments, keep_freed_memory, squared_error, table
from nets import tabular

args = arguments(epochs=4, batch=32)
keep_freed_memory()
torch.manual_seed(0)
report = Report(args, "torch")
rows = table(args)
x = torch.from_numpy(rows).to(args.device)
model = tabular().to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)


def loss_of(batch: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(batch), batch)


if args.compile:
    loss_of = torch.compile(loss_of, dynamic=False)  # one graph for the last batch, too

report.start()
for _ in range(args.epochs):
    for index in torch.randperm(len(x), device=x.device).split(args.batch):
        loss_of(x.index_select(0, index)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    report.epoch()
report.trained()
model.eval()


@torch.no_grad()
def score() -> torch.Tensor:
    return (model(x) - x).square().sum(1).sqrt().cpu()


report.scoring(score)
loss = squared_error(rows, model, args.device)
report.write(loss=loss, threads=torch.get_num_threads())
