"""Image classification as a task: settings, models, loss and sums."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.common.supervised.settings import SupervisedSettings
from experiments.common.supervised.train import Task
from experiments.harness.settings import flag
from experiments.vision import data
from experiments.vision.resnet import cifar_resnet, resnet50
from experiments.vision.vit import vit_b16, vit_small
from sparse_plugins import core

# From the width of small residual networks and the number of classes to a model.
MODELS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "resnet8": lambda width, classes: cifar_resnet(8, width, classes),
    "resnet20": lambda width, classes: cifar_resnet(20, width, classes),
    "resnet50": lambda width, classes: resnet50(classes),
    "vit_small": lambda width, classes: vit_small(classes),
    "vit_b16": lambda width, classes: vit_b16(classes),
}


def narrow_model(name: str, width: int, classes: int, part: float) -> nn.Module:
    """A small model with a part of all channels that can leave it.

    Raises:
        ValueError: If there is no narrow one of this name.

    Example:
        >>> narrow_model("resnet20", 16, 10, 0.5).width
        8
    """
    if name in ("resnet8", "resnet20"):
        return MODELS[name](round(part * width), classes)
    if name == "vit_small":
        whole = vit_small(classes)
        heads, head_dim = round(part * whole.heads), round(part * whole.width / whole.heads)
        width, mlp_dim = round(part * whole.width), round(part * whole.mlp_dim)
        return whole.clone(width=width, heads=heads, head_dim=head_dim, mlp_dim=mlp_dim)
    raise ValueError(f"there is no narrow {name}; choose resnet8, resnet20 or vit_small.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSettings(SupervisedSettings):
    """Settings of a study of image classifiers.

    Raises:
        ValueError: as `SupervisedSettings`.
    """

    data: str = flag(
        "images to train on; imagenet2012 needs tensorflow_datasets", choices=data.NAMES, default="strokes"
    )
    model: str = flag("model to train", choices=tuple(MODELS), default="resnet20")
    width: int = flag("features of the first stage of resnet8 and resnet20", int, default=16)
    image_size: int = flag("pixels of each side, to which images are resized", int, default=28)
    label_smoothing: float = flag("share of each label that goes to all classes, 0 to 1", float, default=0.0)


def task(settings: VisionSettings, part: float = 1.0) -> Task:
    """Model and data of the settings.

    Args:
        settings: Settings of the study.
        part: Part of the channels that stays; see `narrow_model`.

    Raises:
        DataUnavailableError: the data is not on this machine.
    """
    images = data.load(settings.data, settings.image_size)
    named = settings.model, settings.width, images.num_classes
    model = MODELS[named[0]](*named[1:]) if part == 1 else narrow_model(*named, part)

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = nn.unbox(model.init(key, jnp.zeros((1, *images.shape))))
        return variables["params"], variables.get("batch_stats", {})

    def loss(params: Any, statistics: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": statistics}
        logits, renewed = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        labels = optax.smooth_labels(jax.nn.one_hot(batch["label"], images.num_classes), settings.label_smoothing)
        return jnp.mean(optax.softmax_cross_entropy(logits, labels)), renewed.get("batch_stats", {})

    def evaluate(params: Any, statistics: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        logits: Any = model.apply({"params": params, "batch_stats": statistics}, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.argmax(logits, axis=-1) == batch["label"]
        weight = batch["weight"]
        return {"loss": weight @ losses, "right": weight @ right.astype(weight.dtype), "count": jnp.sum(weight)}

    width = f" of width {settings.width}" if settings.model in ("resnet8", "resnet20") else ""
    return Task(
        init=init,
        loss=loss,
        evaluate=evaluate,
        prunable=prunable,
        train=lambda seed: images.train(settings.batch_size, seed),
        test=images.test,
        about=f"{settings.model}{width} on {images.about}.",
        apply=lambda variables, batch: model.apply(variables, batch["image"]),
    )


def prunable(path: tuple[str, ...], leaf: Any) -> bool:
    """All kernels but the first convolution's, as in JaxPruner's study of ResNet-50."""
    return core.kernels_only(path, leaf) and path[0] != "stem"
