"""Keras 3 on arrays in memory, on the backend that KERAS_BACKEND names: tensorflow or torch."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from bench.peers.run import LR, N_CLASSES, Run, main


def train(run: Run) -> npt.NDArray[np.int64]:
    """Return the predicted class of each test image."""
    set_threads(run.threads)
    keras.utils.set_random_seed(run.seed)
    if run.precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 5, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(N_CLASSES, activation="relu", bias_initializer="ones"),
            keras.layers.Activation("linear", dtype="float32"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(LR), loss, metrics=["accuracy"])
    images = {split: run.images(split)[..., np.newaxis] for split in ("train", "valid", "test")}

    class Notes(keras.callbacks.Callback):
        async_safe = True  # else Keras would wait for every callback of every step, as it does not by itself

        def on_train_batch_end(self, batch: int, *_: Any, **__: Any) -> None:
            if batch == 0:
                run.note()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            run.note()

    net.fit(
        images["train"],
        run.labels("train"),
        run.batch_size,
        run.epochs,
        verbose=2,
        callbacks=[Notes()],
        validation_data=(images["valid"], run.labels("valid")),
        validation_batch_size=1000,
    )
    predicted: npt.NDArray[np.int64] = net.predict(images["test"], 1000, verbose=0).argmax(1)
    return predicted


def set_threads(threads: int) -> None:
    """Let the backend compute with so many."""
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


if __name__ == "__main__":
    main(train)
