import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sparse_plugins.rl.replay import Replay, Row

# Powers of a half are exact. A length that divides 2**32 would hide a counter that wraps.
ENVS, LENGTH, SHAPE, DISCOUNT = 2, 7, (2,), 0.5
BATCH = 256  # enough to draw every row there is

GOES_ON, TERMINATES, TRUNCATES, SHOWS_LAST = range(4)
BLANK = Row(np.zeros(SHAPE, np.uint8), False, 0, 0.0, False, False)  # as the empty memory has them


class SlowReplay:
    """Every row of one environment since the beginning, and what may be sampled of the newest."""

    def __init__(self, rows, stack, n_step):
        self.rows, self.stack, self.n_step = rows, stack, n_step

    def sampleable(self):
        """Of the rows a full ring has, those with all frames of a stack before them and a whole window after."""
        oldest = max(len(self.rows) - LENGTH + (self.stack or 1) - 1, 0)
        return range(oldest, len(self.rows) - self.n_step)

    def observation(self, row):
        frame = lambda i: np.asarray(self.rows[i].frame, np.float32)  # noqa: E731
        if self.stack is None:
            return frame(row).tolist()
        frames = [frame(row)]
        while len(frames) < self.stack:
            is_blank = row is None or self.rows[row].first
            row = None if is_blank else row - 1
            frames.insert(0, np.zeros(SHAPE, np.float32) if is_blank else frame(row))
        return np.stack(frames, axis=-1).tolist()

    def transition(self, row):
        """Reward, discount and the row bootstrapped from, None if there is none."""
        total = 0.0
        for k in range(self.n_step):
            here = self.rows[row + k]
            if k > 0 and not here.usable:
                return total, DISCOUNT**k, row + k
            total += DISCOUNT**k * here.reward
            if here.terminated:
                return total, 0.0, None
        return total, DISCOUNT**self.n_step, row + self.n_step


def make_rows(outcomes, env):
    """Rows of an environment: their frames count from 1, so that blanks are told apart."""
    rows, first = [], True
    for i, outcome in enumerate(outcomes):
        frame = np.array([i + 1, 100 * env + 1], np.uint8)
        rows.append(Row(frame, first, i % 3, float(i % 5), outcome == TERMINATES, outcome in (GOES_ON, TERMINATES)))
        first = outcome != GOES_ON
    return rows


def compiled(**options):
    replay = Replay(
        capacity=ENVS * LENGTH + 1,
        num_envs=ENVS,
        frame_shape=SHAPE,
        frame_dtype=jnp.uint8,
        discount=DISCOUNT,
        **options,
    )
    sample = jax.jit(lambda state, key: replay.sample(state, key, BATCH))
    fill = jax.jit(
        lambda state, rows, count: jax.lax.fori_loop(
            0, count, lambda i, state: replay.append(state, jax.tree.map(lambda column: column[i], rows)), state
        )
    )
    return replay, fill, sample


OPTIONS = [
    {"stack": None, "n_step": 1},
    {"stack": 3, "n_step": 3},
    {"stack": 4, "n_step": 2, "prioritized": True},
    {"stack": None, "n_step": 3, "prioritized": True},
]
COMPILED = [compiled(**options) for options in OPTIONS]
LONGEST = 30
OUTCOMES = st.lists(st.sampled_from([GOES_ON, GOES_ON, GOES_ON, TERMINATES, TRUNCATES, SHOWS_LAST]), max_size=LONGEST)


# Steps before the first row: none, and so many that they or their product with environments leave an int32.
STARTS = [0, 2**30 - 3, 2**31 // ENVS - LENGTH, 2**31 - LENGTH, 2**31 - 11, 2**31 - 2, 2**31 - 1]


def filled(fill, replay, rows, start=0):
    columns = [jnp.stack([jnp.asarray(getattr(row, name)) for row in step]) for name in Row._fields for step in rows]
    steps = len(rows)
    padded = [
        jnp.stack(columns[i * steps : (i + 1) * steps] + [jnp.zeros_like(columns[i * steps])] * (LONGEST - steps))
        for i in range(len(Row._fields))
    ]
    return fill(replay.init()._replace(steps=jnp.int32(start)), Row(*padded), steps)


@pytest.mark.parametrize("which", range(len(OPTIONS)))
@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_samples_are_those_of_a_slow_replay(which, data):
    (replay, fill, sample), options = COMPILED[which], OPTIONS[which]
    outcomes = data.draw(OUTCOMES.filter(bool))
    other_outcomes = data.draw(st.lists(st.sampled_from(range(4)), min_size=len(outcomes), max_size=len(outcomes)))
    rows = [*zip(make_rows(outcomes, 0), make_rows(other_outcomes, 1), strict=True)]
    start = data.draw(st.sampled_from(STARTS))
    state = filled(fill, replay, rows, start)
    if start:
        rows = [(BLANK, BLANK)] * LENGTH + rows
        start -= LENGTH
    batch = jax.tree.map(np.asarray, sample(state, jax.random.key(data.draw(st.integers(0, 9)))))
    slow = [SlowReplay([step[env] for step in rows], options["stack"], options["n_step"]) for env in range(ENVS)]
    wanted = {(env, row) for env in range(ENVS) for row in slow[env].sampleable()}
    if options.get("prioritized"):
        wanted = {(env, row) for env, row in wanted if slow[env].rows[row].usable}
    if not wanted:
        assert not batch.weight.any()
        return
    base = max(len(rows) - LENGTH, 0)
    seen = set()
    for i in range(BATCH):
        place, env = divmod(int(batch.index[i]), ENVS)
        row = base + (place - start - base) % LENGTH
        seen.add((env, row))
        here = slow[env].rows[row]
        reward, discount, following = slow[env].transition(row)
        assert batch.weight[i] == float(here.usable)
        assert batch.action[i] == here.action
        assert batch.observation[i].tolist() == slow[env].observation(row)
        if not here.usable:
            continue
        assert (batch.reward[i], batch.discount[i]) == (reward, discount)
        if following is not None:
            assert batch.next_observation[i].tolist() == slow[env].observation(following)
    assert seen == wanted


def simple_row(value, usable=True):
    ones = jnp.ones(ENVS, bool)
    values = jnp.full((ENVS,), value)
    return Row(jnp.full((ENVS, *SHAPE), value, jnp.uint8), ~ones, values, values, ~ones, ones & usable)


def test_priorities_are_drawn_by_and_weighted_against():
    replay, fill, sample = COMPILED[3]
    state = filled(fill, replay, [(row, row) for row in make_rows([GOES_ON] * 6, 0)])
    assert sample(state, jax.random.key(0)).weight.tolist() == [1.0] * BATCH
    # Rows 0 to 2 of both environments; what is no number counts as the highest so far, 1.
    index = jnp.arange(6, dtype=jnp.int32)
    errors = jnp.float32([16.0, 4.0, 4.0, 4.0, 4.0, jnp.nan])
    update = jax.jit(replay.update_priorities)
    state = update(state, index, errors)
    batch = sample(state, jax.random.key(0))
    counts = np.bincount(np.asarray(batch.index), minlength=6)
    np.testing.assert_allclose(counts / BATCH, np.array([4, 2, 2, 2, 2, 1]) / 13, atol=2 / BATCH)
    weight = dict(zip(np.asarray(batch.index).tolist(), np.asarray(batch.weight).tolist(), strict=True))
    np.testing.assert_allclose(
        [weight[i] for i in range(6)], np.sqrt([1 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1]), rtol=1e-4
    )
    # New rows get the highest so far; rows that can't be sampled stay at 0.
    state = jax.jit(replay.append)(state, simple_row(1.0))
    after = update(state, jnp.int32([8, 13]), jnp.float32([9.0, 9.0]))
    assert float(after.highest) == pytest.approx(4.0)
    drawn = set(np.asarray(sample(after, jax.random.key(1)).index).tolist())
    assert drawn == set(range(8))


def at_step(replay, steps):
    """The full ring of an environment whose frames show their number, modulo 1,000."""
    rows = replay.init().rows
    length, envs = rows.action.shape
    newest = steps - 1 - (steps - 1 - np.arange(length)) % length
    frame = np.broadcast_to((newest % 1_000)[:, None], (length, envs))
    ones = jnp.ones((length, envs), bool)
    rows = rows._replace(frame=jnp.asarray(frame, jnp.int32), usable=ones)
    return replay.init()._replace(rows=rows, steps=jnp.int32(steps))


@pytest.mark.parametrize("steps", [2_097_152, 2_100_000, 2**31 - 2_100_003])
def test_successors_are_right_when_environments_times_steps_leave_an_int32(steps):
    options = {"capacity": 5_120, "num_envs": 1_024, "frame_shape": (), "frame_dtype": jnp.int32}
    replay = Replay(**options)
    batch = replay.sample(at_step(replay, steps), jax.random.key(0), 4_000)
    assert batch.weight.tolist() == [1.0] * 4_000
    assert set(((batch.next_observation - batch.observation) % 1_000).tolist()) == {1}
    oldest_four = {number % 1_000 for number in range(steps - 5, steps - 1)}
    assert set(batch.observation.tolist()) == oldest_four


@pytest.mark.parametrize("which", range(len(OPTIONS)))
def test_a_count_beyond_an_int32_samples_as_a_small_one_does(which):
    replay, fill, sample = COMPILED[which]
    rows = [(row, row) for row in make_rows([GOES_ON] * 25 + [TERMINATES] + [GOES_ON] * 4, 0)]
    early = 2 * LENGTH + (2**31 - 9) % LENGTH
    small, large = (filled(fill, replay, rows, start) for start in (early, 2**31 - 9))
    assert int(small.steps) == early + 30
    assert replay.counts_up_to <= int(large.steps) < 2**31
    assert (int(large.steps) - int(small.steps)) % LENGTH == 0
    for seed in range(3):
        jax.tree.map(np.testing.assert_array_equal, *(sample(state, jax.random.key(seed)) for state in (small, large)))
    jax.tree.map(np.testing.assert_array_equal, small._replace(steps=0), large._replace(steps=0))


def test_an_error_of_0_is_drawn_again_some_day():
    replay, fill, _ = COMPILED[3]
    state = filled(fill, replay, [(row, row) for row in make_rows([GOES_ON] * 6, 0)])
    state = jax.jit(replay.update_priorities)(state, jnp.arange(6), jnp.zeros(6))
    assert (np.asarray(state.tree[-1][0, :6]) > 0).all()


@pytest.mark.parametrize("which", [1, 2])
def test_lanes_of_a_vmap_write_at_one_place_and_are_not_copied(which):
    replay = COMPILED[which][0]
    lanes = 3
    state = jax.vmap(lambda _: replay.init(), out_axes=replay.axes)(jnp.arange(lanes))
    append = jax.vmap(lambda state, value: replay.append(state, simple_row(value)), (replay.axes, 0), replay.axes)

    def go(state):
        steps = jnp.arange(20)
        return jax.lax.scan(lambda s, i: (append(s, i + jnp.arange(lanes)), None), state, steps)[0]

    run = jax.jit(go, donate_argnums=0).lower(state).compile()
    place = state.rows.frame.unsafe_buffer_pointer()
    state = run(state)
    assert state.rows.frame.unsafe_buffer_pointer() == place
    assert int(state.steps) == 20
    alone = replay.init()
    for i in range(20):
        alone = replay.append(alone, simple_row(i + 1))
    np.testing.assert_array_equal(state.rows.frame[1], alone.rows.frame)
    jax.tree.map(lambda many, single: np.testing.assert_array_equal(many[1], single), state.tree, alone.tree)


def test_appending_copies_no_ring():
    """Compiled code that needs less temporary memory than one ring has no second one."""
    replay = Replay(capacity=80_000, num_envs=8, frame_shape=(8, 8), frame_dtype=jnp.uint8, stack=4, prioritized=True)
    ones = jnp.ones(8, bool)
    row = Row(jnp.ones((8, 8, 8), jnp.uint8), ones, jnp.ones(8), jnp.ones(8), ~ones, ones)

    def step(state, key):
        state = replay.append(state, row)
        batch = replay.sample(state, key, 4)
        return replay.update_priorities(state, batch.index, batch.reward), batch.observation.sum()

    go = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys), donate_argnums=0)
    shapes = jax.eval_shape(lambda: (replay.init(), jax.random.split(jax.random.key(0), 5)))
    memory = go.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < replay.bytes() / 20
    assert memory.alias_size_in_bytes >= replay.bytes()


def test_memory_is_stated():
    replay = Replay(capacity=100, num_envs=2, frame_shape=(84, 84), frame_dtype=jnp.uint8, stack=4)
    rows = jax.tree.leaves(replay.init())
    assert replay.bytes() == sum(leaf.nbytes for leaf in rows) == 100 * (84 * 84 + 4 + 4 + 3) + 4
    assert replay.observation_shape == (84, 84, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 13, "stack": 4, "n_step": 3}, r"capacity is 13, 6 rows .* needs 7; give 14 or more"),
        ({"n_step": 0}, "n_step is 0; give an int from 1"),
        ({"num_envs": True}, "num_envs is True; give an int from 1"),
        ({"stack": 0}, "stack is 0; give an int from 1"),
        ({"capacity": 2**31}, f"capacity is {2**31}; give an int from 1"),
        ({"discount": 1.5}, r"discount is 1\.5"),
    ],
)
def test_options_are_checked(options, message):
    allowed = {"capacity": 100, "num_envs": 2, "frame_shape": (), "frame_dtype": jnp.float32}
    with pytest.raises(ValueError, match=message):
        Replay(**{**allowed, **options})
