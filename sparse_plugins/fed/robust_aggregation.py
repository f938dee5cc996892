"""Rules of aggregation that a few hostile clients cannot steer; each counts clients by head.

They need all updates of a round at once. What a mean does not defend, and what these cost: docs/fedjax.md.
"""

import dataclasses
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

__all__ = ["Array", "FedMedian", "FedTrimmedAvg", "Krum", "RobustRule", "trimmed_mean"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class FedMedian:
    """The median of each weight over the clients that hold it; of an even number, the mean of the two in the middle.

    As long as fewer than half of a weight's holders are hostile, it lies between values of honest ones.

    Source: Yin et al., Byzantine-Robust Distributed Learning (2018); FedMedian in Flower.

    Example:
        >>> FedMedian().cut(5)
        2
    """

    min_clients: ClassVar[int] = 1

    def cut(self, clients: int) -> int:
        """How many of the smallest and of the largest values to leave out."""
        return max(clients - 1, 0) // 2


@dataclasses.dataclass(frozen=True)
class FedTrimmedAvg:
    """The mean of each weight over the clients that hold it, without the smallest and the largest values.

    Attributes:
        beta: Fraction of a round's valid clients to leave out at each end, 0 up to less than 0.5. Their number is
            rounded up, so that drop-outs leave no round without a defence, and is the same for every weight; of a
            weight that few clients hold, at least one value is left, or two.

    Raises:
        ValueError: If `beta` is outside [0, 0.5).

    Source: Yin et al., Byzantine-Robust Distributed Learning (2018); FedTrimmedAvg in Flower, which rounds down.

    Example:
        >>> [FedTrimmedAvg(beta=0.2).cut(clients) for clients in (1, 2, 9, 10)]
        [0, 0, 2, 2]
    """

    beta: float = 0.2
    min_clients: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 0.5:
            raise ValueError(
                f"beta is {self.beta}; give the fraction to leave out at each end, 0 up to less than 0.5. For all but "
                "the middle, use FedMedian()."
            )

    def cut(self, clients: int) -> int:
        """How many of the smallest and of the largest values to leave out."""
        exact = Fraction(repr(float(self.beta)))  # 0.1 as typed, not the float next to it: of 30 clients 3, not 4
        return min(math.ceil(exact * clients), FedMedian().cut(clients))


@dataclasses.dataclass(frozen=True)
class Krum:
    """The update with the nearest neighbours, or the mean of a few such: multi-Krum.

    An update's score is the sum of its squared distances to the n - num_malicious - 2 nearest others of n. Distances
    are over kept weights and dense leaves: a weight that a client does not hold is 0 for it. The mean counts the chosen
    by their number of examples, and what one of them does not hold as no change.

    Attributes:
        num_malicious: Hostile clients to be ready for in a round, 0 or more.
        num_to_keep: How many updates to choose, 1 or more: 1 is Krum, more is multi-Krum.

    Raises:
        ValueError: If a number is too small.

    Source: Blanchard et al., Machine Learning with Adversaries (2017); Krum in Flower.

    Example:
        >>> krum = Krum(num_malicious=1, num_to_keep=2)
        >>> krum.min_clients, krum.choose([np.array([[1.0], [1.1], [0.8], [1.4], [-9.0]])])
        (5, [0, 1])
    """

    num_malicious: int
    num_to_keep: int = 1

    def __post_init__(self) -> None:
        if self.num_malicious < 0:
            raise ValueError(f"num_malicious is {self.num_malicious}; give 0 or more.")
        if self.num_to_keep < 1:
            raise ValueError(f"num_to_keep is {self.num_to_keep}; give 1 for Krum, more for multi-Krum.")

    @property
    def min_clients(self) -> int:
        """Valid clients that a round needs: honest ones have to be near more honest than hostile others."""
        return self.num_malicious + 2 + max(self.num_malicious + 1, self.num_to_keep)

    def choose(self, leaves: Iterable[Array]) -> list[int]:
        """Clients to keep, ascending; of equal scores the first.

        Args:
            leaves: Real arrays [clients, entries], one a leaf; at least `min_clients` clients.
        """
        distances = sum(map(_squared_distances, leaves), np.zeros(()))
        clients = len(distances)
        others = np.sort(distances[~np.eye(clients, dtype=bool)].reshape(clients, clients - 1), axis=1)
        scores = others[:, : clients - self.num_malicious - 2].sum(axis=1)
        return sorted(np.argsort(scores, kind="stable")[: self.num_to_keep].tolist())


RobustRule = FedMedian | FedTrimmedAvg | Krum


def trimmed_mean(values: Array, held: Array, cut: int) -> Array:
    """Means over holders without the extremes.

    Args:
        values: Finite [clients, entries].
        held: bool [clients, entries]: whether a client has a say.
        cut: How many of the smallest and of the largest values to leave out, where enough hold the weight to leave one.

    Returns:
        float64 [entries]; 0 where none has a say.

    Example:
        >>> trimmed_mean(np.array([[1.0, 5.0], [2.0, 0.0], [90.0, 7.0]]), np.array([[1, 1], [1, 0], [1, 1]]) == 1, 1)
        array([2., 6.])
    """
    votes = held.sum(axis=0)
    ordered = np.sort(np.where(held, values, np.inf), axis=0)
    cuts = np.minimum(cut, np.maximum(votes - 1, 0) // 2)
    ranks = np.arange(len(values))[:, None]
    inside = (ranks >= cuts) & (ranks < votes - cuts)
    return np.where(inside, ordered, 0).sum(axis=0, dtype=np.float64) / np.maximum(votes - 2 * cuts, 1)


def _squared_distances(values: Array) -> Array:
    """float64 [clients, clients]; differences first, as nothing else is exact for updates that are nearly the same."""
    wide = values.astype(np.float64)
    return np.stack([np.square(wide - row).sum(axis=1) for row in wide])
