"""SAELens: its TopKTrainingSAE in its SAETrainer, fed with tensors."""

import torch
from common import KEPT, LATENTS, LR, Report, activations, arguments, batches_of_activations, dictionary, unexplained
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

args = arguments(epochs=4, batch=1024, samples=8192)
torch.manual_seed(0)
report = Report(args, "sae-lens", "torch")
x = activations(args.samples, seed=0).to(args.device)
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=768, d_sae=LATENTS, k=KEPT, device=args.device))
with torch.no_grad():
    sae.W_enc.copy_(dictionary(args).t())
    sae.W_dec.copy_(dictionary(args))
config = SAETrainerConfig(
    total_training_samples=args.epochs * len(x),
    train_batch_size_samples=args.batch,
    lr=LR,
    lr_end=LR,  # not used by the constant schedule, but asked for
    device=args.device,
    logger=LoggingConfig(log_to_wandb=False),
)
trainer = SAETrainer(cfg=config, sae=sae, data_provider=batches_of_activations(x, args, report))
report.start()
trainer.fit()
report.epoch()
report.trained()
report.write(loss=unexplained(sae.eval(), args.device), threads=torch.get_num_threads())
