import ale_py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sparse_plugins.rl.environments.atari import AtariProtocol, AtariVector, atari_100k, machado
from sparse_plugins.rl.environments.atari.action_log import ActionLog, slot_seeds
from sparse_plugins.rl.environments.atari.roms import ale, game_name, rom_file


@pytest.mark.parametrize(
    ("game", "name"),
    [
        ("MsPacman", "ms_pacman"),
        ("ms_pacman", "ms_pacman"),
        ("ALE/MsPacman-v5", "ms_pacman"),
        ("MsPacmanNoFrameskip-v4", "ms_pacman"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("PONG", "pong"),
        ("ALE/Et-v5", "et"),
        ("TicTacToe3D", "tic_tac_toe_3d"),
    ],
)
def test_games_are_found_by_any_usual_name(game, name):
    assert game_name(game) == name


def test_every_name_of_ale_is_its_own():
    playable = [name for name in ale()[1].get_all_rom_ids() if ale_py.ALEInterface.isSupportedROM(rom_file(name))]
    assert [game_name(name) for name in playable] == playable


@pytest.mark.parametrize("game", ["combat", "joust", "maze_craze", "warlords"])
def test_games_that_nobody_can_play_alone_are_unknown(game):
    assert ale_py.ALEInterface.isSupportedROM(rom_file(game)) is None
    with pytest.raises(ValueError, match="there is no Atari game"):
        game_name(game)


def test_unknown_games_list_near_ones():
    with pytest.raises(ValueError, match=r"no Atari game 'MsPackman' .* did you mean ms_pacman, pacman"):
        AtariVector("MsPackman", 1, seed=0)
    with pytest.raises(ValueError, match=r"no Atari game 'qqqq' .* allowed are adventure, .*, zaxxon"):
        game_name("qqqq")


def test_missing_and_damaged_rom_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"'pong' is missing or damaged: .*nowhere.*ALE_ROMS_DIR.*reinstall"):
        AtariVector("pong", 1, seed=0)
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"No such file.*pong\.bin"):
        AtariVector("pong", 1, seed=0)
    (tmp_path / "pong.bin").write_bytes(b"nonsense")
    with pytest.raises(FileNotFoundError, match=r"hash of pong\.bin does not match.*ALE_ROMS_DIR"):
        AtariVector("pong", 1, seed=0)


def test_protocols_are_those_of_the_papers():
    assert machado() == AtariProtocol(sticky_actions=0.25, noop_starts=0, episodic_life=False, max_frames=108_000)
    assert atari_100k() == machado(sticky_actions=0.0, noop_starts=30, episodic_life=True)
    assert not atari_100k(training=False).episodic_life
    assert atari_100k(sticky_actions=0.25).sticky_actions == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sticky_actions": 1.5}, r"sticky_actions is 1\.5"),
        ({"frame_skip": 0}, "frame_skip is 0"),
        ({"noop_starts": -1}, "noop_starts is -1"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"frame_shape": (84, 84, 1)}, r"frame_shape is \(84, 84, 1\); give height and width"),
        ({"frame_shape": (84, 0)}, "a side of frame_shape is 0"),
    ],
)
def test_protocols_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        machado(**changes)


@hypothesis.given(
    st.integers(0, 2**40), st.lists(st.tuples(st.integers(0, 2**14 - 1), st.integers(0, 2**17 - 1)), unique=True)
)
def test_no_two_slots_or_renewals_share_a_seed(seed, pairs):
    slots, renewals = np.array(pairs, np.int64).reshape(-1, 2).T
    seeds = slot_seeds(seed, slots, renewals)
    assert len(set(seeds.tolist())) == len(pairs)
    assert ((seeds >= 0) & (seeds < 2**31)).all()


def test_two_seeds_share_next_to_nothing():
    slots = np.arange(10_000)
    first, second = (slot_seeds(seed, slots, 0 * slots) for seed in (0, 1))
    assert len(np.intersect1d(first, second)) <= 2


@hypothesis.given(st.integers(1, 4), st.integers(0, 2**32), st.sampled_from([5, 2500]))
@hypothesis.settings(max_examples=20)
def test_the_log_agrees_with_lists(num_slots, seed, steps):
    rng = np.random.default_rng(seed)
    log, lists = ActionLog(num_slots), [[] for _ in range(num_slots)]
    for _ in range(steps):
        actions = rng.integers(0, 18, num_slots)
        log.append(actions)
        for slot in range(num_slots):
            lists[slot].append(int(actions[slot]))
        for slot in np.flatnonzero(rng.random(num_slots) < 1 / 300):
            log.restart(np.array([slot]))
            lists[slot] = []
    assert log.lengths().tolist() == [len(of_slot) for of_slot in lists]
    actions = log.actions()
    assert len(actions) == max(map(len, lists))
    for slot, of_slot in enumerate(lists):
        assert actions[:, slot].tolist() == [0] * (len(actions) - len(of_slot)) + of_slot
