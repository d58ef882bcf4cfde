"""dictionary_learning: its TopKTrainer in its trainSAE, fed with tensors; no warm-up, so that the rate is that of all sides."""

import torch
from common import KEPT, LATENTS, LR, Report, activations, arguments, batches_of_activations, dictionary, unexplained
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE

args = arguments(epochs=4, batch=1024, samples=8192)
torch.manual_seed(0)
report = Report(args, "dictionary-learning", "torch")
x = activations(args.samples, seed=0).to(args.device)
kept = []


class Kept(TopKTrainer):
    """The trainer, starting where all sides do, and kept: trainSAE returns nothing."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        with torch.no_grad():
            self.ae.encoder.weight.copy_(dictionary(args))
            self.ae.decoder.weight.copy_(dictionary(args).t())
        kept.append(self.ae)


steps = args.epochs * -(-len(x) // args.batch)
settings = {
    "trainer": Kept,
    "steps": steps + 1,
    "activation_dim": 768,
    "dict_size": LATENTS,
    "k": KEPT,
    "layer": 0,
    "lm_name": "none",
    "lr": LR,
    "warmup_steps": 0,
    "device": args.device,
}
report.start()
trainSAE(batches_of_activations(x, args, report), [settings], steps=steps, device=args.device)
report.epoch()
report.trained()
report.write(loss=unexplained(kept[0], args.device), threads=torch.get_num_threads())
