"""Span corruption as a task: settings, model, loss and sums."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.common.supervised.settings import SupervisedSettings
from experiments.common.supervised.train import Task
from experiments.harness.settings import flag
from experiments.t5 import data
from experiments.t5.model import BASE, PAD, T5, TINY
from experiments.t5.spans import lengths
from sparse_plugins import core

SIZES = {"tiny": TINY, "base": BASE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Settings(SupervisedSettings):
    """Settings of a study of T5.

    Raises:
        ValueError: as `SupervisedSettings`.
    """

    data: str = flag("texts to train on, as bytes; c4 needs tensorflow_datasets", choices=data.NAMES, default="manual")
    model: str = flag("size of the T5 1.1", choices=tuple(SIZES), default="tiny")
    length: int = flag("tokens of a text, before spans of it are hidden", int, default=96)


def task(settings: T5Settings) -> Task:
    """Model and data of the settings.

    Raises:
        DataUnavailableError: the data is not on this machine.
        ValueError: the texts are too short.
    """
    config, size = SIZES[settings.model], lengths(settings.length)
    texts = data.load(settings.data, settings.length, config.vocabulary)
    model = T5(config)

    def init(key: jax.Array) -> tuple[Any, Any]:
        inputs, targets = (jnp.zeros((1, count), jnp.int32) for count in (size.inputs, size.targets))
        return nn.unbox(model.init(key, inputs, targets))["params"], {}

    def sums(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        logits: Any = model.apply({"params": params}, batch["inputs"], batch["decoder_inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        weight = (batch["targets"] != PAD).astype(losses.dtype)
        right = jnp.argmax(logits, axis=-1) == batch["targets"]
        return {"loss": jnp.sum(weight * losses), "right": jnp.sum(weight * right), "count": jnp.sum(weight)}

    def loss(params: Any, statistics: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, Any]:
        found = sums(params, batch)
        return found["loss"] / found["count"], statistics

    return Task(
        init=init,
        loss=loss,
        evaluate=lambda params, statistics, batch: sums(params, batch),
        prunable=core.kernels_only,
        train=lambda seed: texts.train(settings.batch_size, seed),
        test=texts.test,
        about=f"T5 1.1 {settings.model} on {texts.about}, spans of {settings.length} hidden.",
    )
