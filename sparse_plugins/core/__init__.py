"""Sparsity as an optimizer: mask updaters for any optax transformation and any pytree."""

import typing

from sparse_plugins import on_demand
from sparse_plugins.core import export as export
from sparse_plugins.core.algorithms.alternating import ACDC
from sparse_plugins.core.algorithms.at_init import GraspPruning, SnipPruning, hessian_gradient_product
from sparse_plugins.core.algorithms.fisher_and_wanda import FisherPruning, WandaPruning
from sparse_plugins.core.algorithms.global_pruning import GlobalMagnitudePruning, GlobalSaliencyPruning
from sparse_plugins.core.algorithms.gradual_regrowth import GradualRigL, GradualSET, GraNet
from sparse_plugins.core.algorithms.per_module import PerModule
from sparse_plugins.core.algorithms.pruning import MagnitudePruning, NoPruning, RandomPruning, SaliencyPruning
from sparse_plugins.core.algorithms.regrowth import SET, RigL, SRigL, StaticRandomSparse
from sparse_plugins.core.algorithms.straight_through import SoftTopKSte, SrSte, SteMagnitudePruning, SteRandomPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.config import SparsityConfig, create_updater_from_config
from sparse_plugins.core.distributions import erk, kernels_only, not_dim_one, uniform
from sparse_plugins.core.drop_fractions import ConstantDrop, CosineDrop, LinearDrop
from sparse_plugins.core.initialization import rescale_to_fan_in
from sparse_plugins.core.layers.axes import LayerAxes, Layers
from sparse_plugins.core.layers.describe import describe_layers
from sparse_plugins.core.layers.described_axes import Axes
from sparse_plugins.core.masks import NOT_PRUNED, apply_masks, pack_masks, unpack_masks
from sparse_plugins.core.plans import Plan, plan
from sparse_plugins.core.registry import all_algorithm_names, register_algorithm
from sparse_plugins.core.restored import CheckpointMismatchError, check_restored, identity_of
from sparse_plugins.core.schedules import (
    AlternatingSchedule,
    NoUpdateSchedule,
    OneShotSchedule,
    PeriodicSchedule,
    PolynomialSchedule,
)
from sparse_plugins.core.sparse_checks import check_sparse
from sparse_plugins.core.sparse_optimizer import sparsify, start, updater_of
from sparse_plugins.core.structures import Block, ByPath, Channel, ChannelGroups, ConstantFanIn, NByM, Unstructured
from sparse_plugins.core.summary import describe_plan, summarize_intersection, summarize_sparsity
from sparse_plugins.core.transform.state import SparseState, check_state, find_sparse_state
from sparse_plugins.core.updater_defaults import build_updater

if typing.TYPE_CHECKING:
    from sparse_plugins.core.layers.channel_groups import ChannelGraph, ChannelGroup, channel_graph, channel_masks
    from sparse_plugins.core.layers.half_pruned import whole_channels
    from sparse_plugins.core.layers.roles import trace_layers
    from sparse_plugins.core.layers.shrink import Shrunk, expand, shrink
else:
    _MODULES = {  # which load `jax.extend`
        "channel_groups": ("ChannelGraph", "ChannelGroup", "channel_graph", "channel_masks"),
        "half_pruned": ("whole_channels",),
        "roles": ("trace_layers",),
        "shrink": ("Shrunk", "expand", "shrink"),
    }
    __getattr__, __dir__ = on_demand.loaders(
        __name__, {name: f"{__name__}.layers.{module}" for module, names in _MODULES.items() for name in names}
    )

__all__ = [
    "ACDC",
    "NOT_PRUNED",
    "SET",
    "AlternatingSchedule",
    "Axes",
    "BaseUpdater",
    "Block",
    "ByPath",
    "Channel",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelGroups",
    "CheckpointMismatchError",
    "ConstantDrop",
    "ConstantFanIn",
    "CosineDrop",
    "FisherPruning",
    "GlobalMagnitudePruning",
    "GlobalSaliencyPruning",
    "GraNet",
    "GradualRigL",
    "GradualSET",
    "GraspPruning",
    "LayerAxes",
    "Layers",
    "LinearDrop",
    "MagnitudePruning",
    "NByM",
    "NoPruning",
    "NoUpdateSchedule",
    "OneShotSchedule",
    "PerModule",
    "PeriodicSchedule",
    "Plan",
    "PolynomialSchedule",
    "RandomPruning",
    "RigL",
    "SRigL",
    "SaliencyPruning",
    "Shrunk",
    "SnipPruning",
    "SoftTopKSte",
    "SparseState",
    "SparsityConfig",
    "SrSte",
    "StaticRandomSparse",
    "SteMagnitudePruning",
    "SteRandomPruning",
    "Unstructured",
    "WandaPruning",
    "all_algorithm_names",
    "apply_masks",
    "build_updater",
    "channel_graph",
    "channel_masks",
    "check_restored",
    "check_sparse",
    "check_state",
    "create_updater_from_config",
    "describe_layers",
    "describe_plan",
    "erk",
    "expand",
    "find_sparse_state",
    "hessian_gradient_product",
    "identity_of",
    "kernels_only",
    "not_dim_one",
    "pack_masks",
    "plan",
    "register_algorithm",
    "rescale_to_fan_in",
    "shrink",
    "sparsify",
    "start",
    "summarize_intersection",
    "summarize_sparsity",
    "trace_layers",
    "uniform",
    "unpack_masks",
    "updater_of",
    "whole_channels",
]
