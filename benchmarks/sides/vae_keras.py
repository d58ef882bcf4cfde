"""Keras 3 on torch or on JAX (KERAS_BACKEND says which): two functional halves, the KL by `add_loss`, `fit` as it comes."""

import os

import keras
import numpy as np
from common import LR, Report, arguments, float_images, negative_bound
from keras import layers, ops

args = arguments()
keras.utils.set_random_seed(0)
backend = os.environ["KERAS_BACKEND"]
report = Report(args, "keras", {"torch": "torch", "jax": "jax"}[backend])


class Draw(layers.Layer):
    """(mu, logvar) -> z, adding KL(N(mu, exp(logvar)) || N(0, I)), the mean over the batch, to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        mu, logvar = inputs
        kl = -0.5 * ops.sum(1 + logvar - ops.square(mu) - ops.exp(logvar), axis=1)
        self.add_loss(ops.mean(kl))
        return mu + ops.exp(0.5 * logvar) * keras.random.normal(ops.shape(mu), seed=self.seeds)


def bce(x, logits):
    return ops.sum(ops.binary_crossentropy(x, logits, from_logits=True), axis=-1)


class Watch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None) -> None:
        report.epoch()


entry = keras.Input((784,))
hidden = layers.Dense(400, activation="relu")(entry)
mu, logvar = layers.Dense(20)(hidden), layers.Dense(20)(hidden)
encoder = keras.Model(entry, [mu, logvar])
code = keras.Input((20,))
decoder = keras.Model(code, layers.Dense(784)(layers.Dense(400, activation="relu")(code)))
model = keras.Model(entry, decoder(Draw()([mu, logvar])))
model.compile(optimizer=keras.optimizers.Adam(LR, epsilon=1e-8), loss=bce)

x = float_images(args)
report.start()
model.fit(x, x, batch_size=args.batch, epochs=args.epochs, shuffle=True, verbose=0, callbacks=[Watch()])
report.trained()


def decode(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-decoder.predict(z, verbose=0, batch_size=2000)))


report.write(loss=negative_bound(args, lambda x: encoder.predict(x, verbose=0, batch_size=2000), decode))
