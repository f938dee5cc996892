"""The command: flags as Dopamine's users know them, shortcuts, and errors that say what to do."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gin
import pytest
from absl import app, flags
from absl.testing import flagsaver

from sparse_plugins.rl import train
from sparse_plugins.rl.dopamine.bindings import bound
from tests.rl.resume_worker import BINDINGS

SHORT = ["Runner.num_iterations = 1", "Runner.training_steps = 60"]


@pytest.fixture(autouse=True)
def restored_flags() -> Iterator[None]:
    with flagsaver.flagsaver():
        yield


def run(*arguments: str, bindings: list[str] = BINDINGS) -> int:
    gin.clear_config()
    flags.FLAGS(["train", *arguments, *(f"--gin_bindings={binding}" for binding in bindings if "=" in binding)])
    return train.main(["train"])


@pytest.fixture
def cartpole(tmp_path: Path) -> str:
    """A gin file."""
    path = tmp_path / "cartpole.gin"
    path.write_text("\n".join(BINDINGS))
    return f"--gin_files={path}"


def test_it_trains_and_is_done_the_second_time(
    cartpole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shortcuts = ["--sparsity=0.5", "--pruner=magnitude", "--seed=4", "--plasticity"]
    command = [cartpole, f"--base_dir={tmp_path}/run", *shortcuts]
    assert run(*command, bindings=SHORT) == 0
    said = capsys.readouterr().out
    assert said.startswith("MagnitudePruning: masks change")
    assert "(sparsity 0.5)" in said
    header, row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {"train_return", "sparsity", "mask_overlap", "dormant_share", "srank", "policy_churn"} <= set(
        header.split(",")
    )
    settings = (tmp_path / "run" / "settings.gin").read_text()
    assert "# seeds: agent 4, environments 4\n" in settings
    assert "create_updater_from_config.rng_seed = 4\n" in settings
    assert run(*command, bindings=SHORT) == 0
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == [header, row]


def test_plan_only_prints_the_plan_and_leaves_nothing(cartpole: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cartpole, "--plan_only", "--target_policy=at_sync", bindings=[]) == 0
    plan = capsys.readouterr().out
    assert "first mask change: optimizer step 2 = environment step 38 = frame 38" in plan
    assert "target network: at_sync" in plan
    *_, length, concern = plan.splitlines()
    assert length == "5 iterations of 40 environment steps"
    assert concern.startswith("WARNING: SET still changes masks at the end of a run of 43 optimizer steps")


def test_a_packaged_configuration_is_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config=cartpole_dqn", "--plan_only", bindings=["ClassicControlDQNNetwork.hidden_units = 8"]) == 0
    assert "params/layers_1/kernel     (8, 8)" in capsys.readouterr().out
    assert run("--config=cartpol_dqn", "--plan_only", bindings=[]) == 2
    assert "--config is 'cartpol_dqn'; allowed are acrobot_dqn, " in capsys.readouterr().err


QUANTILE = "--gin_bindings=create_agent.agent_name = 'jax_quantile'"


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        (["--config=cartpole_dqn"], {"JaxDQNAgent": 4}),
        (["--config=redo_dqn"], {"JaxDQNAgent": 4}),  # leaves it to its parent
        (["--config=cartpole_dqn", QUANTILE], {"JaxQuantileAgent": 4, "JaxDQNAgent": None}),
        ([QUANTILE], {"JaxQuantileAgent": 4}),
        (["--config=cartpole_dqn", "--gin_bindings=JaxDQNAgent.seed = 7"], {"JaxDQNAgent": 7}),
    ],
)
def test_a_seed_reaches_the_agent_that_is_chosen(arguments: list[str], seeds: dict[str, int | None]) -> None:
    gin.clear_config()
    flags.FLAGS(["train", "--seed=4", *arguments])
    train._configure()
    assert {agent: bound(f"{agent}.seed") for agent in seeds} == seeds


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("JaxDQNAgent.epsilon_trian = 0.1", "Did you mean epsilon_train"),
        ("JaxDQNAgnt.epsilon_train = 0.1", "Did you mean JaxDQNAgent"),
        ("create_updater_from_config.drop_fracion = 0.1", "Did you mean 'drop_fraction'"),
        ("create_updater_from_config.sparsity = 0.7", "--sparsity=0.5 and --gin_bindings='create_updater_from_config"),
        ("create_agent.agent_name = 'dqn'", "agent_name is 'dqn'"),
        ("create_runner.schedule = 'train'", "create_runner.schedule is 'train'; allowed are"),
        (
            "create_sparse_agent.updater = 'rigl'",
            "--sparsity would have no effect, because create_sparse_agent.updater",
        ),
        ("create_updater_from_config.sparsity = '0.5'", "create_updater_from_config.sparsity = '0.5'"),
        ("JaxDQNAgent.stack_size = 'x'", "\n  JaxDQNAgent.stack_size = 'x'\n"),
        (
            "create_gym_environment.environment_name = 'CartPol'",
            "create_gym_environment.environment_name = 'CartPol'\n",
        ),
    ],
)
def test_a_wrong_binding_is_an_error_with_the_remedy(
    binding: str, message: str, cartpole: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = [] if "sparsity = '0.5'" in binding else ["--sparsity=0.5"]
    assert run(cartpole, "--plan_only", *flag, bindings=[binding]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not re.search(r"0x[0-9a-f]{6}|In call to configurable", said)


def test_a_folder_of_another_run_is_an_error(cartpole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.gin").write_text("JaxDQNAgent.gamma = 0.5\n")
    assert run(cartpole, f"--base_dir={tmp_path}", bindings=[]) == 2
    assert "- JaxDQNAgent.gamma = 0.5" in capsys.readouterr().err


def test_flags_that_are_missing_or_stray_are_usage_errors() -> None:
    flags.FLAGS(["train"])
    with pytest.raises(
        app.UsageError, match=r"--base_dir is missing.*For --config there are acrobot_dqn, atari_100k_der"
    ):
        train.main(["train"])
    assert "pong_dqn" in flags.FLAGS["config"].help
    with pytest.raises(app.UsageError, match="is no flag; each value needs its own"):
        train.main(["train", "JaxDQNAgent.gamma = 0.5"])


def test_the_module_is_a_command_and_is_quiet(cartpole: str) -> None:
    command = [sys.executable, "-m", "sparse_plugins.rl.train", cartpole, "--plan_only"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, check=True, text=True)
    assert done.stdout.startswith("SET: masks change")
    assert done.stderr == ""


NO_ALGORITHM = "sparsity given for sparsity, but no algorithm, so the agent would be dense: bind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity=0.9", "--plan_only"], NO_ALGORITHM),
        (
            ["--gin_bindings=create_updater_from_config.update_freq = 5", "--plan_only"],
            "update_freq given for sparsity",
        ),
        (["--sparsity=0.9", "--pruner=rigl", "--plan_only"], "RigL with NoUpdateSchedule.* is a static random mask"),
        (["--sparsity=0.9", "--pruner=magnitude", "--plan_only"], "MagnitudePruning with .* keeps every weight"),
        (
            ["--sparsity=0.9", "--pruner=rigl", "--gin_bindings=create_updater_from_config.total_steps = 0"],
            "total_steps is 0",
        ),
    ],
)
def test_a_run_that_would_not_be_what_its_flags_say_does_not_start(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the user's own says nothing about sparsity; what the command line adds has to be enough."""
    path = tmp_path / "dense.gin"
    path.write_text("\n".join(binding for binding in BINDINGS if "create_updater" not in binding))
    assert run(f"--gin_files={path}", f"--base_dir={tmp_path}/run", *arguments, bindings=[]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "flag", ["--algorithm=rigl", "--pruner=rigl", "--gin_bindings=create_updater_from_config.pruner_type = 'rigl'"]
)
@pytest.mark.parametrize("name", ["algorithm", "pruner_type"])
def test_the_papers_name_of_the_algorithm_is_another_for_it(
    flag: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.gin"
    path.write_text("\n".join(BINDINGS).replace("config.algorithm", f"config.{name}"))
    assert run(f"--gin_files={path}", flag, "--plan_only", bindings=[]) == 0
    assert capsys.readouterr().out.startswith("RigL: masks change")
    assert run(f"--gin_files={path}", flag, "--algorithm=rigl", "--pruner=set", "--plan_only", bindings=[]) == 2
    said = capsys.readouterr().err
    assert "--algorithm=rigl and --pruner=set are one flag; give one." in said or "contradict each other" in said


def test_the_length_of_a_run_is_enough_of_a_schedule(cartpole: str, capsys: pytest.CaptureFixture[str]) -> None:
    window = [
        f"create_updater_from_config.{key} = None" for key in ("update_start_step", "update_end_step", "update_freq")
    ]
    length = [
        "create_updater_from_config.step_unit = 'environment step'",
        "create_updater_from_config.total_steps = 200",
    ]
    assert run(cartpole, "--pruner=rigl", "--plan_only", bindings=[*window, *length]) == 0
    assert "RigL: masks change" in capsys.readouterr().out


def test_a_schedule_is_held_against_the_iterations(
    cartpole: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = [
        "create_updater_from_config.update_start_step = 5_000",
        "create_updater_from_config.update_end_step = 9_000",
    ]
    assert run(cartpole, f"--base_dir={tmp_path}/run", bindings=late) == 2
    assert re.search(
        r"changes no mask in a run of \d+ optimizer steps.* Runner.num_iterations", capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "settings.gin").exists()


def test_the_plan_says_that_a_schedule_does_not_end(cartpole: str, capsys: pytest.CaptureFixture[str]) -> None:
    long = ["create_updater_from_config.update_end_step = 9_000", "create_updater_from_config.update_freq = 10"]
    assert run(cartpole, "--pruner=magnitude", "--plan_only", bindings=long) == 0
    assert re.search(r"WARNING: \w+ reaches [\d.]+% of its target sparsity in a run of", capsys.readouterr().out)
