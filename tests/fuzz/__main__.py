"""`python -m tests.fuzz codec --seconds 60`: mutates inputs towards code not reached yet, and reads them.

Needs atheris (`pip install atheris`, on Linux). Stops at the first finding, which is written to the
folder of the corpus; `python -m tests.fuzz codec --replay FILE` runs it again.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

_CODEC = (".payload", ".message_binding", ".envelope", ".mask_forms", ".position_codes", ".value_codes", ".reader")
_DELTAS = (".deltas", ".block_codes", ".step_codes", ".position_codes", ".rice_codes", ".rank_index", ".reader")
# By target the modules whose code guides the mutations.
TARGETS = {
    "codec": [f"sparse_plugins.wire{module}" for module in _CODEC],
    "deltas": [f"sparse_plugins.wire{module}" for module in _DELTAS],
    "archives": [
        "sparse_plugins.core.storage.archives",
        "sparse_plugins.core.export.file_format",
        "sparse_plugins.checkpoints.tree_file",
    ],
    "studies": [
        "experiments.harness",
        "experiments.harness.tables.stored",
        "experiments.harness.tables.report",
        "sparse_plugins.fed.ledger",
    ],
    "configs": ["sparse_plugins.core.config", "sparse_plugins.core.path_rules", "sparse_plugins.core.schedules"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzzes the target that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="what to fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="how long, after loading")
    parser.add_argument("--corpus", type=Path, help="inputs kept between runs (default: runs/fuzz/<target>)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0: the clock's")
    parser.add_argument("--replay", type=Path, help="run this one input instead, without atheris")
    options = parser.parse_args(arguments)
    if options.replay:
        importlib.import_module(f"tests.fuzz.{options.target}").check(options.replay.read_bytes())
        print(f"{options.replay} is read, or refused, as it should be")
        return
    try:
        atheris = importlib.import_module("atheris")
    except ModuleNotFoundError:
        parser.error("this needs atheris: pip install atheris, on Linux.")
    for module in ("jax", "numpy", "optax"):  # the package itself must not be loaded yet, or nothing of it would guide
        importlib.import_module(module)
    with atheris.instrument_imports(include=TARGETS[options.target]):
        target = importlib.import_module(f"tests.fuzz.{options.target}")
    corpus = options.corpus or Path("runs/fuzz", options.target)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, payload in enumerate(target.corpus()):
        (corpus / f"valid_{number:02}").write_bytes(payload)
    flags = [
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-artifact_prefix={corpus}/",
        "-max_len=4096",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
