"""How much of a network still learns, and how to wake what does not: measures, links between layers, recycling."""

from sparse_plugins.rl.plasticity.measures import (
    action_distance,
    dormant_share,
    dormant_units,
    network_distance,
    policy_churn,
    srank,
    unit_scores,
)

__all__ = [
    "action_distance",
    "dormant_share",
    "dormant_units",
    "network_distance",
    "policy_churn",
    "srank",
    "unit_scores",
]
