"""Dopamine: a DQN from a gin file plays CartPole, magnitude pruning to 90%.

Install and run:

    pip install "sparse-plugins[dopamine]"
    python examples/dopamine_cartpole.py

`python -m sparse_plugins.rl.train` does the same from the command line, with exact resume and more configurations.
"""

import argparse
import tempfile

import gin

from sparse_plugins import core
from sparse_plugins.rl import dopamine as sparse  # before Dopamine, which it repairs for current JAX

from dopamine.discrete_domains import gym_lib, run_experiment
from dopamine.jax import networks
from dopamine.jax.agents.dqn import dqn_agent

DENSE = """
create_agent.agent_name = 'jax_dqn'
JaxDQNAgent.network = @networks.ClassicControlDQNNetwork
JaxDQNAgent.observation_shape = (4, 1)
JaxDQNAgent.observation_dtype = %jax_networks.CARTPOLE_OBSERVATION_DTYPE
JaxDQNAgent.stack_size = 1
JaxDQNAgent.min_replay_history = 100
JaxDQNAgent.update_period = 4
JaxDQNAgent.target_update_period = 100
JaxDQNAgent.seed = 1
ReplayBuffer.max_capacity = 50_000
ReplayBuffer.batch_size = 32
create_gym_environment.environment_name = 'CartPole'
create_gym_environment.version = 'v1'
Runner.create_environment_fn = @gym_lib.create_gym_environment
TrainRunner.create_environment_fn = @gym_lib.create_gym_environment
Runner.num_iterations = 1
Runner.use_legacy_logger = False
Runner.fine_grained_print_to_console = False
CollectorDispatcher.collectors = []
"""
SPARSE = """
create_updater_from_config.algorithm = 'magnitude'
create_updater_from_config.sparsity = 0.9
create_updater_from_config.total_steps = {total}
"""


def main(steps=10_000):
    """Trains, prints the result, and returns the parameters of the online network.

    Args:
        steps: Environment steps; the agent learns in every fourth.
    """
    gin.clear_config()
    gin.parse_config(DENSE + f"Runner.training_steps = {steps}")
    gin.parse_config(SPARSE.format(total=(steps - 100) // 4))  # optimizer steps
    runner = run_experiment.TrainRunner(tempfile.mkdtemp(), sparse.create_sparse_agent)  # the line that changes
    runner.run_experiment()
    gin.clear_config()
    params = runner._agent.online_params
    print(runner._agent.describe_plan())
    print(f"{float(core.summarize_sparsity(params)['_total_sparsity']):.1%} of the weights are zero")
    return params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps")
    main(parser.parse_args().steps)
