"""What is measured, and which goals it has to reach.

A `Group` is measured in rounds; each round runs its sides one after the other, A B C A B C ..., each in a fresh process. A goal is a
ratio (or a difference) of one figure of two sides, taken within each round; its value is the median over the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Side:
    name: str
    env: str
    script: str
    """A file of `sides/`, or "-c" with a line of Python in `options`."""
    options: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    rounds: int = 99
    """At most that many rounds, for sides so slow that more would take most of the time."""
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Group:
    key: str
    title: str
    what: str
    sides: tuple[Side, ...]
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    """Options that make it tiny, for --quick."""
    figures: tuple[str, ...] = ("epoch_s", "loss", "ready_s", "peak_mb")


def peer(name: str, kind: str, **more: object) -> Side:
    return Side(name, name, f"{kind}_{name.replace('-', '_')}.py", **more)  # type: ignore[arg-type]


def keras(backend: str, **more: object) -> Side:
    environ = {"KERAS_BACKEND": backend}
    return Side(f"keras-{backend}", f"keras-{backend}", "vae_keras.py", environ=environ, **more)  # type: ignore[arg-type]


def vaes(slow: int) -> tuple[Side, ...]:
    """Every side of the MLP VAE; `slow`: rounds of the slowest."""
    return (
        Side("tuned", "base", "vae_tuned.py"),
        Side("aezoo", "aezoo", "vae_aezoo.py"),
        Side("graph replay", "base", "vae_graph.py", devices=("cuda",)),
        peer("pythae", "vae"),
        peer("lightning", "vae", rounds=slow),
        Side("DataLoader script", "base", "vae_dataloader.py", rounds=slow),
        keras("torch", rounds=slow, devices=("cpu",)),
        keras("jax", devices=("cpu",)),
    )


def table(batch: int) -> Group:
    return Group(
        f"w3_{batch}",
        f"W3: tabular autoencoder, batch {batch}",
        "PyOD's 32-64-32-64-32 network with batch norm and dropout 0.2, 50,000 rows, Adam, float32. "
        "Loss: mean squared error over all rows. Scoring: a reconstruction error for each of the 50,000 rows; PyOD's `fit` ends with it, "
        "so what is compared with PyOD is training and scores together.",
        (
            Side("tuned", "base", "table_tuned.py"),
            Side("aezoo", "aezoo", "table_aezoo.py"),
            Side("aezoo compiled", "aezoo", "table_aezoo.py", ("--compile",), rounds=2),
            Side("tuned compiled", "base", "table_tuned.py", ("--compile",), rounds=1),
            peer("pyod", "table"),
        ),
        ("--batch", str(batch), "--epochs", "4"),
        ("--samples", "3000", "--epochs", "2"),
        ("epoch_s", "first_s", "fit_s", "score_s", "scored_s", "loss", "peak_mb"),
    )


def many(batch: int) -> Group:
    return Group(
        f"many_{batch}",
        f"fit_many: 16 networks of W3 at once, batch {batch}",
        "The training call as a whole, 3 epochs; 16 networks in one `aezoo.fit_many` against one network in `aezoo.fit`.",
        (
            Side("one", "aezoo", "table_aezoo.py"),
            Side("sixteen", "aezoo", "table_aezoo.py", ("--many", "16")),
        ),
        ("--batch", str(batch), "--epochs", "3"),
        ("--samples", "3000", "--epochs", "2"),
        ("fit_s", "loss", "peak_mb"),
    )


def import_of(name: str, env: str, line: str, **environ: str) -> Side:
    return Side(name, env, "-c", (f"import {line}",), environ)


GROUPS = (
    Group(
        "import",
        "Import",
        'The process `python -c "import ..."`, from its start to its end; "torch" in aezoo\'s environment.',
        (
            import_of("torch", "aezoo", "torch"),
            import_of("aezoo", "aezoo", "aezoo"),
            import_of("pythae", "pythae", "pythae.models"),
            import_of("lightning", "lightning", "pytorch_lightning"),
            import_of("keras-torch", "keras-torch", "keras", KERAS_BACKEND="torch"),
            import_of("keras-jax", "keras-jax", "keras", KERAS_BACKEND="jax"),
            import_of("pyod", "pyod", "pyod.models.auto_encoder"),
            import_of("sparsify", "sparsify", "sparsify", SPARSIFY_DISABLE_TRITON="1"),
            import_of("saelens", "saelens", "sae_lens"),
            import_of("dictionary_learning", "dictionary_learning", "dictionary_learning.training"),
        ),
        figures=("wall_s",),
    ),
    Group(
        "start",
        "Start-up: from the start of the process to the end of the first step",
        "W1's model and data of one batch of 128, trained for one epoch, which is one step: imports, reading the data, building the "
        "model, and whatever the training call sets up.",
        vaes(1),
        ("--epochs", "1", "--samples", "128"),
        figures=("ready_s", "peak_mb"),
    ),
    Group(
        "w1",
        "W1: MLP VAE",
        "784-400-20-400-784, Bernoulli likelihood, batch 128, Adam 1e-3, 5 epochs. Loss: negative ELBO on the 10,000 test images with "
        "z at its mean, nats.",
        (
            *vaes(2),
            Side("tuned bf16", "base", "vae_tuned.py", ("--precision", "bf16")),
            Side("aezoo bf16", "aezoo", "vae_aezoo.py", ("--precision", "bf16")),
        ),
        ("--epochs", "5"),
        ("--epochs", "2", "--samples", "1280"),
        ("epoch_s", "loss", "ready_s", "peak_mb", "imported_mb"),
    ),
    Group(
        "w2",
        "W2: convolutional VAE",
        "Three stride-2 convolutions 32/64/128, 32 latents, mirrored decoder; batch 128, Adam 1e-3, 3 epochs of the first 6,400 images. "
        "Loss as in W1.",
        (
            Side("tuned", "base", "vae_tuned.py"),
            Side("aezoo", "aezoo", "vae_aezoo.py"),
            peer("pythae", "vae"),
            peer("lightning", "vae", rounds=1),
        ),
        ("--net", "conv", "--epochs", "3", "--samples", "6400"),
        ("--epochs", "2", "--samples", "512"),
    ),
    table(32),
    table(256),
    many(32),
    many(256),
    Group(
        "w4",
        "W4: TopK sparse autoencoder",
        "768 -> 12,288 latents, k = 32, batch 1,024, Adam 1e-3, float32; epochs of 8 steps on synthetic activations, all sides from the "
        "same weights. Loss: unexplained share of the variance of 2,048 held-out activations after the last epoch.",
        (
            Side("tuned", "base", "topk_tuned.py"),
            Side("aezoo", "aezoo", "topk_aezoo.py"),
            peer("sparsify", "topk"),
            peer("saelens", "topk", rounds=2),
            peer("dictionary_learning", "topk", rounds=2),
        ),
        ("--epochs", "3"),
        ("--epochs", "2", "--samples", "2048"),
    ),
)


@dataclass(frozen=True)
class Goal:
    work: str
    text: str
    group: str
    figure: str
    over: str
    """The side whose figure is divided (or from which is subtracted) ..."""
    under: str
    """... by that of this side."""
    bound: str
    """"<=" or ">="."""
    value: float
    difference: bool = False
    devices: tuple[str, ...] = ("cpu",)


def slower(work: str, group: str, other: str, times: float, figure: str = "epoch_s", **more: object) -> Goal:
    """`other` takes at least `times` as long as aezoo."""
    name = {"lightning": "Lightning", "saelens": "SAELens", "pyod": "PyOD"}.get(other, other)
    return Goal(work, f"{name} / aezoo", group, figure, other, "aezoo", ">=", times, **more)  # type: ignore[arg-type]


def at_most(work: str, group: str, times: float, side: str = "aezoo", base: str = "tuned", figure: str = "epoch_s", **more: object) -> Goal:  # fmt: skip
    return Goal(work, f"{side} / {base}", group, figure, side, base, "<=", times, **more)  # type: ignore[arg-type]


GPU = ("cuda",)
GOALS = (
    at_most("W1, time an epoch", "w1", 1.05),
    slower("W1, time an epoch", "w1", "pythae", 1.5),
    slower("W1, time an epoch", "w1", "lightning", 1.8),
    slower("W1, time an epoch", "w1", "DataLoader script", 3.0),
    slower("W1, time an epoch", "w1", "keras-torch", 3.0),
    slower("W1, time an epoch", "w1", "keras-jax", 1.0),
    slower("W1, 5 epochs from the start of the process", "w1", "pythae", 1.9, "ready_s"),
    at_most("W1, time an epoch in bf16", "w1", 0.8, "aezoo bf16", "aezoo"),
    at_most("W2, time an epoch", "w2", 1.03),
    slower("W2, time an epoch", "w2", "pythae", 1.4),
    at_most("W3 batch 32, time an epoch", "w3_32", 1.10),
    at_most("W3 batch 256, time an epoch", "w3_256", 1.10),
    at_most("W3 batch 32, whole step compiled", "w3_32", 0.65, "aezoo compiled"),
    at_most("W3 batch 256, whole step compiled", "w3_256", 0.65, "aezoo compiled"),
    slower("W3 batch 32, trained and its rows scored", "w3_32", "pyod", 2.2, "scored_s"),
    slower("W3 batch 256, trained and its rows scored", "w3_256", "pyod", 3.0, "scored_s"),
    slower("W3, scoring 50,000 rows", "w3_32", "pyod", 20.0, "score_s"),
    at_most("W4, time a step", "w4", 1.05),
    slower("W4, time a step", "w4", "sparsify", 2.0),
    slower("W4, time a step", "w4", "saelens", 6.0),
    slower("W4, time a step", "w4", "dictionary_learning", 6.0),
    at_most("W1, peak memory", "w1", 1.1, figure="peak_mb"),
    at_most("W1, peak memory", "w1", 0.45, base="pythae", figure="peak_mb"),
    Goal("Import, seconds", "aezoo - torch", "import", "wall_s", "aezoo", "torch", "<=", 0.15, difference=True),
    at_most("fit_many, batch 32, training call", "many_32", 3.0, "sixteen", "one", "fit_s"),
    at_most("fit_many, batch 256, training call", "many_256", 3.0, "sixteen", "one", "fit_s"),
    at_most("W1 on one GPU, time an epoch", "w1", 1.3, base="graph replay", devices=GPU),
    slower("W1 on one GPU, time an epoch", "w1", "pythae", 10.0, devices=GPU),
    slower("W1 on one GPU, time an epoch", "w1", "DataLoader script", 10.0, devices=GPU),
    at_most("fit_many on one GPU, batch 256, training call", "many_256", 2.0, "sixteen", "one", "fit_s", devices=GPU),
)
