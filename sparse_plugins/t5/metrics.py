"""What T5X logs about sparsity during training."""

import itertools
from typing import Any

from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.summary import summarize_sparsity
from sparse_plugins.core.transform.state import find_sparse_state
from sparse_plugins.core.trees import PyTree, aligned, leaf_names
from sparse_plugins.t5.upstream import import_t5x

__all__ = ["SparsityMetrics"]


class SparsityMetrics:
    """Logs the sparsity of the parameters in use; give it to T5X's `Trainer` as `weight_metrics_computer`.

    Example:
        >>> computer = SparsityMetrics()  # or in gin: trainer.Trainer.weight_metrics_computer = @t5.SparsityMetrics()
    """

    def compute_metrics(self, gradients: PyTree, old_train_state: Any, new_train_state: Any) -> dict[str, Any]:
        """Metrics of one step.

        Args:
            gradients: Not read.
            old_train_state: Not read.
            new_train_state: Train state after the step.

        Returns:
            T5X metrics 'sparsity/<path>' for every parameter with a mask, and 'sparsity/total' over all of them.

        Raises:
            ValueError: If the optimizer of the train state is dense.
        """
        average = import_t5x("metrics").AveragePerStep.from_model_output
        params, masks = new_train_state.params, find_sparse_state(new_train_state.param_states).masks
        summary = summarize_sparsity(params, masks=masks)
        pruned = map(is_pruned, aligned(params, masks, "masks"))
        metrics = {
            f"sparsity/{name}": average(summary[name]) for name in itertools.compress(leaf_names(params), pruned)
        }
        return {**metrics, "sparsity/total": average(summary["_total_sparsity"])}
