"""`python -m experiments.channels {resnet,vit,rl}`: what channels that leave cost in quality, and save in time."""

import functools
import sys

from experiments.channels import agents, supervised
from experiments.channels.settings import ChannelSettings
from experiments.harness.command import main
from experiments.harness.study import Plan, Question
from experiments.registry import STUDIES


def task(settings: ChannelSettings, question: Question) -> Plan:
    """The plan of a study."""
    cells = settings.chosen(question.variants(settings))
    in_games = question is STUDIES["channels"].questions["rl"]
    return (agents if in_games else supervised).plan(settings, cells)


run = functools.partial(main, STUDIES["channels"], ChannelSettings, task)

if __name__ == "__main__":
    sys.exit(run())
