"""The usual MNIST script: torchvision's data set with `ToTensor`, a DataLoader, sigmoid and BCE, Adam as it comes, `loss.item()`."""

import torch
import torch.nn.functional as F
from common import LR, Report, arguments, torch_bound
from nets import vae
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

args = arguments()
torch.manual_seed(0)
report = Report(args, "torch", "torchvision")
data = datasets.MNIST(str(args.data), train=True, transform=transforms.ToTensor())
if args.samples is not None:
    data = Subset(data, range(args.samples))
loader = DataLoader(data, batch_size=args.batch, shuffle=True)
model = vae(args.net).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=LR)


def loss_of(x: torch.Tensor) -> torch.Tensor:
    mu, logvar = model.posterior(x)
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    recon = F.binary_cross_entropy(model.probabilities(z), x, reduction="sum")
    return (recon - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())) / len(x)


report.start()
for _ in range(args.epochs):
    train_loss = 0.0
    for x, _label in loader:
        x = x.to(args.device)
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        train_loss += loss.item()
        optimizer.step()
    report.epoch()
report.trained()
report.write(loss=torch_bound(args, model.posterior, model.probabilities), threads=torch.get_num_threads())
