"""Checkpoints of federated runs: bit for bit, counted in rounds; tests/checkpoints has the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core, fed
from tests.fed.toy import CLIENT, GRADIENT, MODEL, TRAIN, clients_of_a_round, updater_of


def algorithm_of(name: str, ledger=None):
    return fed.sparse_federated_averaging(GRADIENT, CLIENT, optax.adam(0.01), updater_of(name), TRAIN, ledger=ledger)


def state_after(rounds: int, name: str = "rigl"):
    algorithm = algorithm_of(name)
    state = algorithm.init(MODEL.init(jax.random.PRNGKey(0)))
    for number in range(rounds):
        state, _ = algorithm.apply(state, clients_of_a_round(number))
    return state


def assert_same_bits(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for leaf, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert type(leaf) is type(expected)
        assert np.shape(leaf) == np.shape(expected)
        assert np.asarray(leaf).dtype == np.asarray(expected).dtype
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("name", ["rigl", "static_sparse", "magnitude_ste", "no_prune"])
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    state, algorithm = state_after(2, name), algorithm_of(name)
    fed.Checkpoints(tmp_path).save(2, state, extra={"ledger": "round,client\n", "rows": [1.5, None]})
    found = fed.Checkpoints(tmp_path).restore(like=algorithm.init(MODEL.init(jax.random.PRNGKey(1))))
    assert (found.round, found.extra) == (2, {"ledger": "round,client\n", "rows": [1.5, None]})
    assert_same_bits(found.state, state)
    assert type(found.state.round) is int
    ends = [algorithm.apply(start, clients_of_a_round(2))[0] for start in (state, found.state)]
    assert_same_bits(*ends)


def test_messages_count_rounds(tmp_path):
    checkpoints = fed.Checkpoints(tmp_path, keep=2)
    for number in (1, 4, 6):
        checkpoints.save(number, {"w": number})
    assert checkpoints.rounds() == [4, 6]
    with pytest.raises(FileExistsError, match="has a checkpoint of round 6, and round 5 was to be saved"):
        checkpoints.save(5, {"w": -1})
    (tmp_path / "6.npz").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"of round 6 in .* is damaged .* goes on from round 4, and rounds after"):
        found = checkpoints.restore({"w": 0})
    assert (found.round, found.state, found.extra) == (4, {"w": 4}, None)


def test_a_dense_checkpoint_is_no_start_of_a_sparse_run(tmp_path):
    fed.Checkpoints(tmp_path).save(1, state_after(1, "no_prune"))
    with pytest.raises(fed.CheckpointMismatchError, match="of a dense run: it holds no masks"):
        fed.Checkpoints(tmp_path).restore(state_after(0, "rigl"))
    assert fed.Checkpoints(tmp_path).rounds() == [1], "it is not taken for a damaged one"


def test_a_checkpoint_of_another_sparsity_is_refused_or_changed_on_purpose(tmp_path):
    tree = lambda name, sparsity: {  # noqa: E731
        "opt_state": fed.sparse_server_optimizer(optax.sgd(1.0), name, sparsity=sparsity, rounds=9).init(
            {"w": jnp.ones((10, 10))}
        )
    }
    fed.Checkpoints(tmp_path).save(3, tree("rigl", 0.8))
    other = tree("static_sparse", 0.9)
    with pytest.raises(
        fed.CheckpointMismatchError, match=r"round 3 .*'w' ends at sparsity 0.8, and here it is 0.9: .*keep_t"
    ):
        fed.Checkpoints(tmp_path).restore(other)
    assert fed.Checkpoints(tmp_path).rounds() == [3]
    changed = fed.Checkpoints(tmp_path).restore(other, keep_targets=False).state["opt_state"]
    assert float(changed.target_sparsities["w"]) == pytest.approx(0.9)
    same = fed.Checkpoints(tmp_path).restore(tree("rigl", 0.8)).state["opt_state"]
    assert int(core.unpack_masks({"w": jnp.ones((10, 10))}, same.masks)["w"].sum()) == 20


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    made = lambda **options: fed.sparse_federated_averaging(  # noqa: E731
        GRADIENT, CLIENT, optax.adam(0.01), updater_of("set"), TRAIN, **options
    )
    state = made().init(MODEL.init(jax.random.PRNGKey(0)))
    fed.Checkpoints(tmp_path, updater=made()).save(0, state)
    others = {
        r"client_widths=\(\(0.5,\), 'nested', 0\)": {"client_widths": fed.ClientWidths((0.5,))},
        "personal_masks=True": {"personal_masks": True},
        "rule='voters', min_votes=2": {"aggregation": fed.Aggregation("voters", min_votes=2)},
        "max_norm=1": {"max_norm": 1},
        r"wire=\('int8', 'float32'\)": {"wire": fed.Wire(down="int8")},
    }
    for told, options in others.items():
        with pytest.raises(fed.CheckpointMismatchError, match=told):
            fed.Checkpoints(tmp_path, updater=made(**options)).restore(state)
    assert fed.Checkpoints(tmp_path, updater=made(wire=fed.Wire(zstd=True))).restore(state).round == 0
