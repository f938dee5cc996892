"""When a sparse form of a kernel is faster or smaller than the dense kernel, on this machine.

    python -m experiments.benchmarks.export --out=runs/export

Products of a batch with one float32 kernel are timed, jitted, all forms in one process and in shuffled order. Masks are
random, N:M masks random in each group with n / m as close to the density as it gets. A form counts as faster where
three quarters of the rounds say so. Sizes are those of the arrays in memory, and of files of one kernel and its mask.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.export_plot import save_plot
from experiments.benchmarks.timing import Timing, interleave
from experiments.harness.tables import markdown_table
from sparse_plugins.core import export
from sparse_plugins.core.selection.structured_topk import create_mask
from sparse_plugins.core.structures import NByM, Unstructured

FORMS = ("BCOO", "BCSR", "BCSR by output", "N:M")
FILES = ("bitmask file", "bitmask file, deflated", "dense file, deflated")
Shape = tuple[int, int]


class Speed(NamedTuple):
    """Times of all forms for one product.

    Attributes:
        shape: [in, out] of the kernel.
        batch: Rows of the inputs.
        sparsity: Fraction of zeros.
        timings: By form; their ratios are to the dense product.
    """

    shape: Shape
    batch: int
    sparsity: float
    timings: dict[str, Timing]


class Size(NamedTuple):
    """Sizes of all forms of one kernel.

    Attributes:
        shape: [in, out] of the kernel.
        sparsity: Fraction of zeros.
        ratios: By form: bytes / bytes of the dense array in memory, or of its file that is not deflated.
    """

    shape: Shape
    sparsity: float
    ratios: dict[str, float]


def n_by_m(sparsity: float) -> NByM:
    """The pattern with the smallest groups whose n / m is the density; 2:4 for one half, which hardware knows."""
    density = Fraction(1 - sparsity).limit_denominator(100)
    return NByM(2, 4) if density == Fraction(1, 2) else NByM(max(density.numerator, 1), density.denominator)


def _kernels(shape: Shape, sparsity: float, seed: int) -> tuple[dict[str, object], jax.Array, jax.Array]:
    """The kernel in every form; the dense one, with zeros, and its mask."""
    rng = np.random.default_rng(seed)
    weights = jnp.asarray(rng.standard_normal(shape, np.float32))
    scores = jnp.asarray(rng.random(shape, np.float32))
    mask = create_mask(scores, Unstructured(), sparsity)
    pattern = n_by_m(sparsity)
    forms: dict[str, object] = {
        "dense": weights * mask,
        "BCOO": export.to_bcoo(weights, mask),
        "BCSR": export.to_bcsr(weights, mask),
        "BCSR by output": export.to_bcsr(weights, mask, by_output=True),
        "N:M": export.to_n_by_m(weights, create_mask(scores, pattern, 1 - pattern.n / pattern.m), pattern),
    }
    return forms, weights * mask, mask


def _speed(forms: dict[str, object], shape: Shape, batch: int, rounds: int) -> dict[str, Timing]:
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal((batch, shape[0]), np.float32))
    product = jax.jit(export.matmul)
    contestants: dict[str, Callable] = {
        name: lambda kernel=kernel: product(inputs, kernel) for name, kernel in forms.items()
    }
    return interleave(contestants, "dense", rounds)


def _sizes(forms: dict[str, object], dense: jax.Array, mask: jax.Array) -> dict[str, float]:
    ratios = {name: export.nbytes(forms[name]) / dense.nbytes for name in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        plain, deflated = Path(folder, "dense.npz"), Path(folder, "deflated.npz")
        np.savez(plain, kernel=dense)
        np.savez_compressed(deflated, kernel=dense)
        compressed = [
            export.save_sparse(Path(folder, f"{compress}.npz"), dense, mask, compress=compress)
            for compress in (False, True)
        ]
        base = plain.stat().st_size
        return ratios | dict(zip(FILES, [size / base for size in (*compressed, deflated.stat().st_size)], strict=True))


def measure(
    shapes: Sequence[Shape], batches: Sequence[int], sparsities: Sequence[float], rounds: int
) -> tuple[list[Speed], list[Size]]:
    """Times and sizes of every form for all combinations.

    Args:
        shapes: [in, out] of the kernels.
        batches: Rows of the inputs.
        sparsities: Fractions of zeros.
        rounds: Counted rounds, at least 3.

    Returns:
        Times by shape, batch and sparsity; sizes by shape and sparsity.
    """
    speeds, sizes = [], []
    for shape in shapes:
        for sparsity in sparsities:
            forms, dense, mask = _kernels(shape, sparsity, seed=0)
            sizes.append(Size(shape, sparsity, _sizes(forms, dense, mask)))
            for batch in batches:
                speeds.append(Speed(shape, batch, sparsity, _speed(forms, shape, batch, rounds)))
            print(f"measured {shape[0]} x {shape[1]} at {sparsity:g}", flush=True)
    return sorted(speeds, key=lambda speed: (speed.shape, speed.batch)), sizes


def report(speeds: Sequence[Speed], sizes: Sequence[Size]) -> str:
    """What was measured as Markdown: times, then sizes, both as ratios; what beats dense is bold."""
    cell = lambda value, wins: f"**{value:.3g}**" if wins else f"{value:.3g}"  # noqa: E731
    times, bytes_ = [], []
    for (inputs, outputs), batch, sparsity, timings in speeds:
        front = (f"{inputs} x {outputs}", str(batch), f"{sparsity:g}", f"{timings['dense'].milliseconds:.3f}")
        times.append((*front, *(cell(timings[name].ratio, timings[name].high < 1) for name in FORMS)))
    for (inputs, outputs), sparsity, ratios in sizes:
        pattern = n_by_m(sparsity)
        kernel = (f"{inputs} x {outputs}", f"{sparsity:g}", f"{pattern.n}:{pattern.m}")
        bytes_.append((*kernel, *(cell(ratios[name], ratios[name] < 1) for name in (*FORMS, *FILES))))
    return "\n\n".join(
        [
            f"Time of a product / dense product ({jax.default_backend()}, jax {jax.__version__}, float32)",
            markdown_table(("kernel", "batch", "sparsity", "dense, ms", *FORMS), times),
            "Bytes / bytes of the dense kernel, in memory and of its file",
            markdown_table(("kernel", "sparsity", "N:M is", *FORMS, *FILES), bytes_),
        ]
    )


def _shape(text: str) -> Shape:
    inputs, outputs = map(int, text.split("x"))
    return inputs, outputs


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables; with --out also writes them and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ((512, 512), (2048, 2048), (4096, 1024))
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, default=shapes, metavar="INxOUT", help="shapes of the kernels"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 64), help="rows of the inputs")
    sparsities = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    parser.add_argument("--sparsities", nargs="+", type=float, default=sparsities, help="fractions of zeros in [0, 1)")
    parser.add_argument("--rounds", type=int, default=11, help="counted rounds; one product of each form a round")
    parser.add_argument("--out", type=Path, help="folder for export.md and export.png; default: print only")
    options = parser.parse_args(arguments)
    files = [options.out / name for name in ("export.md", "export.png")] if options.out else []
    if there := [str(file) for file in files if file.exists()]:
        parser.error(f"{' and '.join(there)} would be overwritten; remove them or choose another --out.")
    speeds, sizes = measure(options.shapes, options.batches, options.sparsities, options.rounds)
    print(text := report(speeds, sizes))
    if files:
        options.out.mkdir(parents=True, exist_ok=True)
        files[0].write_text(text + "\n")
        save_plot(files[1], speeds, sizes)
        print(f"wrote {files[0]} and {files[1]}")


if __name__ == "__main__":
    main()
