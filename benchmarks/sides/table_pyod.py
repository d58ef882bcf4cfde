"""PyOD's AutoEncoder as it comes, without its own standardising (the table is standardised) and its weight decay."""

import torch
from common import LR, Report, arguments, squared_error, table
from pyod.models.auto_encoder import AutoEncoder

args = arguments(epochs=4, batch=32)
report = Report(args, "pyod", "torch")


class Watched(AutoEncoder):
    def epoch_update(self) -> None:
        report.epoch()


rows = table(args)
detector = Watched(
    preprocessing=False,
    lr=LR,
    epoch_num=args.epochs,
    batch_size=args.batch,
    optimizer_params={},
    device=torch.device(args.device),
    random_state=0,
    verbose=0,
)
report.start()
detector.fit(rows)
report.trained()
report.scoring(lambda: detector.decision_function(rows), in_training=True)
loss = squared_error(rows, detector.model.eval(), args.device)
report.write(loss=loss, threads=torch.get_num_threads())
