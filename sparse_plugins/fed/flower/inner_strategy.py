"""What is known of the strategy inside: how it aggregates, what it remembers, and whether it can be sparse at all."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import strategy as flower

from sparse_plugins import core
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.fed.flower.records import Layout
from sparse_plugins.fed.growth import GrowthProtocol

__all__ = ["Inner"]

# What these do with replies depends on their weighted mean alone, so that replies need not be kept.
_OF_THE_MEAN = tuple(
    vars(strategy)["aggregate_train"]
    for strategy in (flower.FedAvg, flower.FedAdagrad, flower.FedAdam, flower.FedAvgM, flower.FedYogi)
)
_TREES = (flower.FedXgbBagging, flower.FedXgbCyclic)
_PRIVATE = (
    flower.DifferentialPrivacyClientSideFixedClipping,
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.DifferentialPrivacyClientSideAdaptiveClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
)
_MOMENTS = ("m_t", "v_t", "momentum_vector")


class Inner:
    """A Flower strategy with what has to be known of it.

    Args:
        strategy: The strategy.

    Raises:
        TypeError: If it is none, or its models are no arrays, or it has a loop of its own.
        ValueError: If it never trains.
    """

    def __init__(self, strategy: Any) -> None:
        if not isinstance(strategy, flower.Strategy):
            described = (
                f"the class {strategy.__name__}" if isinstance(strategy, type) else f"a {type(strategy).__name__}"
            )
            if "SecAgg" in described:
                raise TypeError(
                    f"strategy is {described}: secure aggregation is on Flower's older interface, sums up masked dense "
                    "vectors, and is not supported. Give an instance of a Flower strategy, such as FedAvg()."
                )
            raise TypeError(f"strategy is {described}; give an instance of a Flower strategy, such as FedAvg().")
        base: Any = strategy
        while isinstance(base, _PRIVATE):
            base = base.strategy
        if isinstance(base, _TREES) or not isinstance(base, flower.FedAvg):
            raise TypeError(
                f"strategy is a {type(base).__name__}: its models are no arrays that could be sparse, or it does not "
                "say how it weighs replies. Give a FedAvg or what derives from it, such as FedAdam, FedProx, "
                "FedTrimmedAvg, Krum, or a wrapper for differential privacy around one."
            )
        if type(strategy).start is not flower.Strategy.start:
            raise TypeError(
                f"{type(strategy).__name__} has a start of its own, which would pass SparseStrategy by: override "
                "configure_train and aggregate_train instead."
            )
        if base.fraction_train == 0:
            raise ValueError("the strategy has fraction_train=0: nobody would train. Give a fraction above 0.")
        self.strategy, self.base = strategy, base

    @property
    def settings(self) -> str:
        """Names and numbers of the strategy and of what it wraps, but for those of evaluation and of waiting."""
        said: list[str] = []
        strategy: Any = self.strategy
        while True:
            numbers = [
                f"{name}={value}"
                for name, value in vars(strategy).items()
                if isinstance(value, int | float) and not any(word in name for word in ("evaluate", "available"))
            ]
            said.append(f"{type(strategy).__name__}({', '.join(numbers)})")
            if strategy is self.base:
                return " around ".join(said)
            strategy = strategy.strategy

    @property
    def is_private(self) -> bool:
        """Whether it adds noise for differential privacy."""
        return self.strategy is not self.base

    @property
    def takes_the_mean(self) -> bool:
        """Whether the weighted mean of replies says all that it makes use of."""
        methods = [vars(kin)["aggregate_train"] for kin in type(self.base).__mro__ if "aggregate_train" in vars(kin)]
        return not self.is_private and all(method in _OF_THE_MEAN for method in methods[:-1])

    def check_growth(self, updater: core.BaseUpdater, growth: GrowthProtocol) -> None:
        """Raises if clients would tell more than the noise covers."""
        if self.is_private and updater.grows_by_gradient and growth.name != "random":
            raise ValueError(
                f"growth is {growth.name!r} and the strategy adds noise for differential privacy, but gradients that "
                "clients send to grow weights get none. Use growth='random', or core.SET."
            )

    def check_widths(self) -> None:
        """Raises if it can't average over the nodes that hold a weight."""
        if not self.takes_the_mean:
            raise ValueError(
                f"client_widths need a strategy that makes use of the mean of replies alone, and "
                f"{type(self.strategy).__name__} compares them, or makes them noisy, of which narrow ones have a part. "
                "Use FedAvg, FedProx, FedAvgM, FedAdam, FedAdagrad or FedYogi."
            )

    def check_resumable(self) -> None:
        """Raises if it remembers something that a checkpoint would not have."""
        places = {type(self.strategy).__module__, type(self.base).__module__}
        if all(place.startswith("flwr.") for place in places) and not self._has_changing_budget():
            return
        raise TypeError(
            f"{type(self.strategy).__name__} may remember more than its moments, such as a privacy budget, and a "
            "checkpoint would not have it. Leave checkpoints out, or use a strategy of Flower's own without accountant "
            "and adaptive clipping."
        )

    def _has_changing_budget(self) -> bool:
        strategy = self.strategy
        while isinstance(strategy, _PRIVATE):
            if getattr(strategy, "accountant", None) is not None or "Adaptive" in type(strategy).__name__:
                return True
            strategy = strategy.strategy
        return False

    def moments(self, layout: Layout) -> dict[str, dict[str, Any]]:
        """Its arrays beside the model, such as those of FedAdam; zeros before the first round."""
        present = {name: self._named(getattr(self.base, name), layout) for name in _MOMENTS if hasattr(self.base, name)}
        return {
            name: {key: self._moment(arrays.get(key), key, layout) for key in layout.sent}
            for name, arrays in present.items()
        }

    @staticmethod
    def _moment(array: Any, name: str, layout: Layout) -> Any:
        """In one dtype, which for integers is that of NumPy's averages of them."""
        dtype, shape = layout.dtypes[name], layout.sent[name].shape
        dtype = dtype if np.issubdtype(dtype, np.inexact) else np.dtype(np.float64)
        return np.zeros(shape, dtype) if array is None else np.asarray(array, dtype)

    def set_moments(self, moments: dict[str, dict[str, Any]], layout: Layout) -> None:
        """Gives it what `moments` returned."""
        for name, arrays in moments.items():
            values: Any = {key: np.asarray(arrays[key]) for key in layout.sent}
            setattr(self.base, name, list(values.values()) if name == "momentum_vector" else values)

    def confine(self, masks: dict[str, Any], layout: Layout) -> None:
        """Sets moments outside the masks to 0: a weight that is grown again starts without those of its past."""
        moments = {
            name: {
                key: np.where(masks[key] != 0, value, np.zeros((), value.dtype)) if is_pruned(masks[key]) else value
                for key, value in arrays.items()
            }
            for name, arrays in self.moments(layout).items()
        }
        self.set_moments(moments, layout)

    def set_model(self, record: ArrayRecord) -> None:
        """Tells one that keeps its own copy of the model what became of it."""
        if isinstance(self.base, flower.FedAvgM):
            self.base.current_arrays = record

    @staticmethod
    def _named(arrays: Any, layout: Layout) -> dict[str, Any]:
        if not arrays:
            return {}
        return dict(zip(layout.sent, arrays, strict=True)) if isinstance(arrays, Sequence) else dict(arrays)

    @contextlib.contextmanager
    def with_metrics(self, metrics: MetricRecord) -> Iterator[None]:
        """While one reply stands for all, their metrics are what they were aggregated to before."""
        before = self.base.train_metrics_aggr_fn
        self.base.train_metrics_aggr_fn = lambda contents, key: metrics
        try:
            yield
        finally:
            self.base.train_metrics_aggr_fn = before
