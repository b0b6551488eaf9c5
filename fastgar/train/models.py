"""Models by name, and anybody's by ``module:factory``.

All return a score per class, (samples, classes); the loss is the cross-entropy. Published models
that end in a log-softmax under a negative log-likelihood are the same functions.

What matters when per-worker gradients are computed in one pass with `torch.func.vmap`:

=================== ==================================================================
``logistic``, ``mlp``, ``cnn-digits``, ``cnn-aggregathor``, ``resnet18``
                    no randomness and no buffers: nothing to be careful about
``cnn-cifar``       dropout: in training mode vmap must be told ``randomness="different"``.
                    Batch normalisation: in training mode it writes its running statistics,
                    so that the buffers must be mapped too (one copy per worker). In
                    evaluation mode, which is how the published grid was run, neither
                    matters
``resnet18(norm='batch')``
                    batch normalisation, as above
=================== ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..options import Count
from .data import Data
from .importing import imported
from .named import configured
from .room import require_room_for_model

__all__ = ["MODELS", "build", "check", "require_fit"]

Shape = tuple[int, ...]


def logistic(shape: Shape, classes: int) -> nn.Module:
    """Multinomial logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(shape: Shape, classes: int, *, hidden: Count = 100) -> nn.Module:
    """One hidden layer of rectified units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def cnn_digits(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions, for images of 8 x 8 in grey; fewer parameters than the mlp."""
    _require("cnn-digits", shape, (1, 8, 8))
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


def cnn_cifar(shape: Shape, classes: int) -> nn.Module:
    """The CNN of Xie et al., "Fall of empires", UAI 2019, as in the distributed momentum code.

    That code widens the last hidden layer for CIFAR-100.
    """
    _require("cnn-cifar", shape, (3, 32, 32))
    hidden = 256 if classes == 100 else 128
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(64),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(64),
        nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(128),
        nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(128),
        nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(8192, hidden), nn.ReLU(), nn.Dropout(0.25),
        nn.Linear(hidden, classes),
    )  # fmt: skip


def cnn_aggregathor(shape: Shape, classes: int) -> nn.Module:
    """The CNN of Damaskinos et al., "AggregaThor", MLSys 2019, with its initial weights."""
    _require("cnn-aggregathor", shape, (3, 32, 32))
    # With ceil_mode, windows that hang over the edge do so at the end, as TensorFlow's "SAME".
    model = nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(), nn.Linear(4096, 384), nn.ReLU(),
        nn.Linear(384, 192), nn.ReLU(),
        nn.Linear(192, classes),
    )  # fmt: skip
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]
    deviations, biases = (0.05, 0.05, 0.04, 0.04, 1 / 192), (0.0, 0.1, 0.1, 0.1, 0.0)
    for layer, deviation, bias in zip(layers, deviations, biases, strict=True):
        nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        assert layer.bias is not None
        nn.init.constant_(layer.bias, bias)
    return model


Norm = Callable[[int], nn.Module]


def resnet18(shape: Shape, classes: int, *, norm: Literal["group", "batch"] = "group") -> nn.Module:
    """The residual network of He et al., CVPR 2016, in its form for small images.

    The first convolution is 3 x 3 without a stride, and no pooling follows it. Group normalisation
    (32 groups, Wu and He 2018) has as many parameters as batch normalisation, but no state and no
    link between the samples of a batch.
    """
    if len(shape) != 3:
        raise ValueError(f"resnet18 needs images, got samples of shape {_times(shape)}")
    normalised: Norm = nn.BatchNorm2d if norm == "batch" else lambda width: nn.GroupNorm(32, width)
    blocks: list[nn.Module] = []
    inputs = 64
    for width in (64, 128, 256, 512):
        for stride in (1 if width == 64 else 2, 1):
            blocks.append(_Block(inputs, width, stride, normalised))
            inputs = width
    first = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    return nn.Sequential(
        first, normalised(64), nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes),
    )  # fmt: skip


class _Block(nn.Module):
    """Two convolutions, and the input added to what they give."""

    def __init__(self, inputs: int, width: int, stride: int, normalised: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False), normalised(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), normalised(width),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), normalised(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "logistic": logistic,
    "mlp": mlp,
    "cnn-digits": cnn_digits,
    "cnn-cifar": cnn_cifar,
    "cnn-aggregathor": cnn_aggregathor,
    "resnet18": resnet18,
}

MODELS = tuple(FACTORIES)


def build(name: str, data: Data, seed: int) -> nn.Module:
    """Return a model for a data set, on the CPU and in training mode.

    Parameters
    ----------
    name : str
        =================== ====================== ===============================================
        name                samples                parameters
        =================== ====================== ===============================================
        ``logistic``        any                    7,850 on MNIST, 650 on the digits
        ``mlp``             any                    79,510 on MNIST, 7,510 on the digits;
                                                   ``mlp(hidden=100)``
        ``cnn-digits``      1 x 8 x 8              6,090
        ``cnn-cifar``       3 x 32 x 32            1,310,922; 2,384,036 with 100 classes
        ``cnn-aggregathor`` 3 x 32 x 32            1,756,426
        ``resnet18``        images                 11,173,962 on CIFAR-10;
                                                   ``resnet18(norm='batch')``
        ``module:factory``  what it takes          of your own
        =================== ====================== ===============================================

        A factory is looked for on Python's path and in the working directory. It is called without
        arguments if it can be, else with the shape of a sample and the number of classes, and
        returns a `torch.nn.Module` that gives a score per class.
    data : Data
    seed : int
        Of the initial weights. torch's own generators are left as they are.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError, ValueError
        If there is no such model, an option is wrong, the factory cannot be imported or called or
        returns something else, or the model does not fit the data, or memory.

    Examples
    --------
    >>> from fastgar.train.data import load
    >>> model = build("mlp", load("digits"), seed=1)
    >>> sum(parameter.numel() for parameter in model.parameters())
    7510
    """
    with torch.random.fork_rng(devices=()):
        make = _maker(name, tuple(data.x.shape[1:]), data.classes)
        if ":" not in name:
            require_room_for_model(name, make)
        # After the import of a module, which may draw. torch.manual_seed would reach the generators
        # of accelerators too, which are not restored.
        torch.default_generator.manual_seed(seed)
        model = make()
        require_fit(name, model, data)
    return model


def check(name: str) -> None:
    """Raise the error that `build` would, without any data, if there is no such model or option.

    What a ``module:factory`` is shows only when it is built.

    Examples
    --------
    >>> check("resnet81")
    Traceback (most recent call last):
    ValueError: unknown model 'resnet81': did you mean 'resnet18'?
    """
    if not isinstance(name, str) or ":" not in name:
        configured("model", name, FACTORIES)


def _maker(name: str, shape: Shape, classes: int) -> Callable[[], nn.Module]:
    if isinstance(name, str) and ":" in name:
        return imported(name, shape, classes)
    known, options = configured("model", name, FACTORIES)
    return partial(FACTORIES[known], shape, classes, **options)


def require_fit(name: str, model: nn.Module, data: Data) -> None:
    """Raise a ValueError unless the model can be trained on such samples; leave it as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()  # batch normalisation takes no batch of one sample, and must not count this one
    try:
        with torch.no_grad():
            scores = model(data.x[:1].cpu())
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"{name} does not fit samples of shape {_times(data.x.shape[1:])}: {error}"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    wanted = (1, data.classes)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != wanted:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{name} must give a score for each of {data.classes} classes: {wanted} for one "
            f"sample, got {got}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{name} has no parameters to train")


def _require(name: str, shape: Shape, wanted: Shape) -> None:
    if shape != wanted:
        raise ValueError(
            f"{name} needs samples of shape {_times(wanted)}, got {_times(shape)}; logistic and "
            "mlp take any"
        )


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))
