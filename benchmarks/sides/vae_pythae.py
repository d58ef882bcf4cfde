"""pythae: its VAE with our networks, through its TrainingPipeline, as its README shows."""

import logging
import tempfile

import torch
from common import LR, Report, arguments, float_images, torch_bound
from nets import vae
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

logging.disable(logging.WARNING)
args = arguments()
torch.manual_seed(0)
report = Report(args, "pythae", "torch")
net = vae(args.net)


class Encoder(BaseEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.net = net.encoder

    def forward(self, x: torch.Tensor) -> ModelOutput:
        mu, logvar = self.net(x).chunk(2, dim=1)
        return ModelOutput(embedding=mu, log_covariance=logvar)


class Decoder(BaseDecoder):
    def __init__(self) -> None:
        super().__init__()
        self.net = net.decoder

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))


class Watch(TrainingCallback):
    def on_epoch_end(self, *_, **__) -> None:
        report.epoch()


config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20 if args.net == "mlp" else 32, reconstruction_loss="bce")
model = VAE(config, encoder=Encoder(), decoder=Decoder())
x = torch.from_numpy(float_images(args)).view(-1, 1, 28, 28)
with tempfile.TemporaryDirectory() as folder:
    training = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=args.epochs,
        learning_rate=LR,
        per_device_train_batch_size=args.batch,
        optimizer_cls="Adam",
        no_cuda=not args.device.startswith("cuda"),
    )
    report.start()
    TrainingPipeline(model=model, training_config=training)(train_data=x, callbacks=[Watch()])
    report.trained()
model = model.to(args.device).eval()
loss = torch_bound(args, net.to(args.device).posterior, net.probabilities)
report.write(loss=loss, threads=torch.get_num_threads())
