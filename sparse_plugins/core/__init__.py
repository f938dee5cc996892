"""Sparsity as an optimizer: mask updaters for any optax transformation and any pytree."""

from sparse_plugins.core.algorithms.global_pruning import GlobalMagnitudePruning, GlobalSaliencyPruning
from sparse_plugins.core.algorithms.pruning import MagnitudePruning, NoPruning, RandomPruning, SaliencyPruning
from sparse_plugins.core.algorithms.regrowth import SET, RigL, StaticRandomSparse
from sparse_plugins.core.algorithms.straight_through import SteMagnitudePruning, SteRandomPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.config import SparsityConfig, all_algorithm_names, create_updater_from_config
from sparse_plugins.core.distributions import erk, kernels_only, not_dim_one, uniform
from sparse_plugins.core.masks import NOT_PRUNED, apply_masks, pack_masks, unpack_masks
from sparse_plugins.core.schedules import (
    ConstantDrop,
    CosineDrop,
    LinearDrop,
    NoUpdateSchedule,
    OneShotSchedule,
    PeriodicSchedule,
    PolynomialSchedule,
)
from sparse_plugins.core.state import SparseState, check_state, find_sparse_state
from sparse_plugins.core.structures import Block, Channel, NByM, Unstructured
from sparse_plugins.core.summary import describe_plan, summarize_intersection, summarize_sparsity

__all__ = [
    "NOT_PRUNED",
    "SET",
    "BaseUpdater",
    "Block",
    "Channel",
    "ConstantDrop",
    "CosineDrop",
    "GlobalMagnitudePruning",
    "GlobalSaliencyPruning",
    "LinearDrop",
    "MagnitudePruning",
    "NByM",
    "NoPruning",
    "NoUpdateSchedule",
    "OneShotSchedule",
    "PeriodicSchedule",
    "PolynomialSchedule",
    "RandomPruning",
    "RigL",
    "SaliencyPruning",
    "SparseState",
    "SparsityConfig",
    "StaticRandomSparse",
    "SteMagnitudePruning",
    "SteRandomPruning",
    "Unstructured",
    "all_algorithm_names",
    "apply_masks",
    "check_state",
    "create_updater_from_config",
    "describe_plan",
    "erk",
    "find_sparse_state",
    "kernels_only",
    "not_dim_one",
    "pack_masks",
    "summarize_intersection",
    "summarize_sparsity",
    "uniform",
    "unpack_masks",
]
