"""Real sparsity: parameters and masks as arrays and files that hold only what is kept, and back, bit-exactly."""

from sparse_plugins.core.export.array_formats import ByOutput
from sparse_plugins.core.export.file_format import load_sparse, save_sparse
from sparse_plugins.core.export.matmul import matmul
from sparse_plugins.core.export.nm_array import NByMArray
from sparse_plugins.core.export.trees import masks_of, nbytes, to_bcoo, to_bcsr, to_dense, to_n_by_m

__all__ = [
    "ByOutput",
    "NByMArray",
    "load_sparse",
    "masks_of",
    "matmul",
    "nbytes",
    "save_sparse",
    "to_bcoo",
    "to_bcsr",
    "to_dense",
    "to_n_by_m",
]
