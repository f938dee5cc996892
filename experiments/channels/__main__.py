"""`python -m experiments.channels {resnet,vit,rl,federated}`: what channels that leave cost, and save in time."""

import functools
import sys

from experiments.channels import agents, federated, supervised
from experiments.channels.settings import ChannelSettings
from experiments.harness.command import main
from experiments.harness.study import Plan, Question
from experiments.registry import STUDIES


def task(settings: ChannelSettings, question: Question) -> Plan:
    """The plan of a study."""
    cells = settings.chosen(question.variants(settings))
    questions = STUDIES["channels"].questions
    name = next(name for name, its in questions.items() if its is question)
    return {"rl": agents.plan, "federated": federated.plan}.get(name, supervised.plan)(settings, cells)


run = functools.partial(main, STUDIES["channels"], ChannelSettings, task)

if __name__ == "__main__":
    sys.exit(run())
