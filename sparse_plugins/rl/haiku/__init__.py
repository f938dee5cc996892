"""Sparse agents with Haiku networks: our own, and those of the shape of DQN Zoo's and Acme's."""

from sparse_plugins.rl.haiku.dqn import SparseDQN
from sparse_plugins.rl.haiku.dqn_zoo_acme import SparseAcmeLearner, SparseZooAgent, sparsify_acme, sparsify_dqn_zoo
from sparse_plugins.rl.haiku.networks import (
    HE,
    LECUN,
    RAINBOW_INIT,
    XAVIER,
    impala_torso,
    minatar_torso,
    mlp_torso,
    nature_torso,
    q_network,
)
from sparse_plugins.rl.haiku.pqn import SparsePQN
from sparse_plugins.rl.haiku.remembered_params import RememberedParams, remember_params, renew_params

__all__ = [
    "HE",
    "LECUN",
    "RAINBOW_INIT",
    "XAVIER",
    "RememberedParams",
    "SparseAcmeLearner",
    "SparseDQN",
    "SparsePQN",
    "SparseZooAgent",
    "impala_torso",
    "minatar_torso",
    "mlp_torso",
    "nature_torso",
    "q_network",
    "remember_params",
    "renew_params",
    "sparsify_acme",
    "sparsify_dqn_zoo",
]
