"""A rollout of Tunix in another process follows the one that its trainer updates, at a few bytes a version.

    pip install google-tunix
    python -m experiments.demos.tunix_sync

A small Llama that writes digits is trained by policy gradient to write sevens, with float32 masters. Each version goes
to `VanillaRollout.update_params` here, as Tunix's trainers hand it over, and by `sparse_plugins.rl.weight_sync.tunix`
to a `VanillaRollout` in a process of its own. Both then write from the same seed, and must write the same.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import common
from tunix.rl.rollout import base_rollout, vanilla_rollout

from experiments.harness.tables import markdown_table
from sparse_plugins import rl
from sparse_plugins.rl.weight_sync import tunix

PROMPTS, WRITTEN = ["12", "90", "345", "7"] * 8, 16
PAD, BOS, EOS, FIRST = 0, 1, 2, 3
SENT_AS = jnp.bfloat16
# Wide and shallow: what is measured are weights, not attention.
CONFIG = llama.ModelConfig(
    num_layers=2,
    vocab_size=16,
    embed_dim=256,
    hidden_dim=1024,
    num_heads=4,
    head_dim=64,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-5,
)


class Digits:
    """A tokenizer whose tokens are digits: the methods that Tunix asks for."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """Tokens of digits."""
        return [FIRST + int(digit) for digit in text]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Digits of tokens."""
        return "".join(str(token - FIRST) if FIRST <= token < FIRST + 10 else "?" for token in ids)

    def bos_id(self) -> int:
        """The first token of each text."""
        return BOS

    def eos_id(self) -> int:
        """The last."""
        return EOS

    def pad_id(self) -> int:
        """What stands before shorter prompts."""
        return PAD


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each learning rate.

    Raises:
        RuntimeError: If the other process wrote anything else than this one.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=20, help="optimizer steps, each of which makes a version of the weights"
    )
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=(1e-6, 1e-5, 1e-3), help="learning rates of Adam"
    )
    options = parser.parse_args(arguments)
    rows = [(f"{rate:.0e}", *train(rate, options.steps)) for rate in options.learning_rates]
    print(markdown_table(("learning rate", "sevens", "bytes of a delta", "/ dense", "snapshots", "same texts"), rows))


def rollout_of(params: Any = None) -> vanilla_rollout.VanillaRollout:
    """Tunix's own, with these weights or new ones."""
    model = llama.Llama3(CONFIG, rngs=nnx.Rngs(0))
    nnx.update(model, in_dtype(nnx.state(model) if params is None else params, SENT_AS))
    cache = base_rollout.CacheConfig(64, CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim)
    return vanilla_rollout.VanillaRollout(model, Digits(), cache)


def in_dtype(tree: Any, dtype: Any) -> Any:
    """The same tree in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def write(rollout: Any, seed: int) -> base_rollout.RolloutOutput:
    """Completions of all prompts."""
    settings = base_rollout.RolloutConfig(
        max_tokens_to_generate=WRITTEN, max_prompt_length=8, temperature=1.0, seed=jax.random.key(seed)
    )
    return rollout.generate(PROMPTS, settings)


def train(rate: float, steps: int) -> tuple[str, ...]:
    """The cells of a row: both processes write after each step of the trainer."""
    model = llama.Llama3(CONFIG, rngs=nnx.Rngs(0))
    graph, masters = nnx.split(model)
    optimizer = optax.adam(rate)
    state = optimizer.init(masters)
    sender = rl.WeightSender()
    here = tunix.PublishedRollout(rollout_of(), sender)
    here.update_params(in_dtype(masters, SENT_AS))
    spawn = multiprocessing.get_context("spawn")
    (weights, their_weights), (texts, their_texts) = spawn.Pipe(), spawn.Pipe()
    process = spawn.Process(target=elsewhere, args=(their_weights, their_texts), daemon=True)
    process.start()
    their_weights.close()
    their_texts.close()

    @jax.jit
    def step(masters: Any, state: Any, prompts: jax.Array, written: jax.Array, advantage: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logps = common.compute_per_token_logps(graph, params, prompts, written, PAD, EOS, stop_gradient=False)
            return -jnp.mean(advantage * logps)

        updates, after = optimizer.update(jax.grad(loss)(masters), state, masters)
        return optax.apply_updates(masters, updates), after

    sevens = []
    for number in range(steps):
        out = write(here, number)
        weights.poll(None)  # until it has started, and asks
        sender.answer(weights)
        if (theirs := texts.recv()) != out.text:
            raise RuntimeError(f"version {sender.version}: {theirs[:2]} elsewhere, {out.text[:2]} here")
        written = np.full((len(PROMPTS), WRITTEN), PAD, np.int32)
        for row, tokens in zip(written, out.tokens, strict=True):
            row[: len(tokens)] = tokens
        rewards = (written == FIRST + 7).astype(np.float32)
        sevens.append(rewards.mean())
        prompts = jnp.asarray(out.left_padded_prompt_tokens)
        masters, state = step(masters, state, prompts, jnp.asarray(written), jnp.asarray(rewards - rewards.mean()))
        here.update_params(in_dtype(masters, SENT_AS))
    for end in (weights, texts):
        end.close()
    process.join(60)
    dense = sum(leaf.size for leaf in jax.tree.leaves(masters)) * jnp.dtype(SENT_AS).itemsize
    each = sender.traffic.delta_bytes / max(sender.traffic.deltas, 1)
    shares = f"{sevens[0]:.0%} -> {sevens[-1]:.0%}"
    return shares, f"{each:,.0f}", f"{each / dense:.2%}", str(sender.traffic.snapshots), f"{steps} of {steps}"


def elsewhere(weights: connection.Connection, texts: connection.Connection) -> None:
    """Takes the newest weights, writes, and sends what it wrote, until the trainer hangs up."""
    rollout = rollout_of()
    receiver = rl.WeightReceiver(in_dtype(nnx.state(llama.Llama3(CONFIG, rngs=nnx.Rngs(0))), SENT_AS), weights)
    try:
        for seed in range(1 << 30):
            tunix.follow(rollout, receiver, timeout=None)
            texts.send(write(rollout, seed).text)
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main()
