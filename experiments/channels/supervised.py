"""Image classifiers: trained with masks, shrunk after the last change of masks, or narrow from the start."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import carrying
from experiments.channels.measured import shares_of_time, size_of, stored
from experiments.channels.settings import ChannelSettings
from experiments.channels.studies import GROUPS, NARROW, PER_LAYER
from experiments.common.supervised.train import Point, Programs, State, Task, Turn, make_train, updating
from experiments.harness.cells import Cell
from experiments.harness.layers import masks_of
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan, Variants
from experiments.harness.variants import described
from experiments.vision.task import task as vision_task
from sparse_plugins import core

TIMED_STEPS = 15


def plan(settings: ChannelSettings, cells: Variants) -> Plan:
    """The plan of the studies of images."""
    whole = vision_task(settings)
    shapes, train = whole.shapes(), make_train(whole, settings)
    dense = _dense_step(whole, settings, train)

    def prepare(cell: Cell) -> Callable[[Recorder], None]:
        asked, turn = settings.at(cell), None
        if cell.name == NARROW:
            narrow = vision_task(asked, 1 - asked.sparsity)
            points = make_train(narrow, asked)(core.NoPruning())
        elif cell.name == GROUPS:
            graph = graph_of(whole, settings)
            updater = asked.updater({**cells[cell.name], "sparsity_type": core.ChannelGroups(graph)}, _kernels)
            turn = Turn(last_change(updater) + 1, functools.partial(shrunk, whole, settings, graph))
            points = train(updater, turn)
        else:
            prunable = functools.partial(_inside, whole.prunable) if cell.name == PER_LAYER else whole.prunable
            points = train(asked.updater(cells[cell.name], prunable))

        def run(recorder: Recorder) -> None:
            for point in points(recorder.run.seed):
                is_last = point.step == settings.steps
                masks = masks_of(point.state.params, point.state.optimizer)
                measured = _measured(point, dense(), whole, shapes) if is_last else {}
                recorder.add(
                    point.step,
                    masks if turn is None else None,  # of a network that shrinks they change their sizes
                    training_loss=None if point.step == 0 else point.training_loss,
                    loss=point.loss,
                    score=point.score,
                    sparsity=point.sparsity,
                    is_last=int(is_last),
                    **measured,
                )

        return run

    return settings.plan_of(cells, f"{whole.about} {described(dataclasses.asdict(settings))}", prepare)


def _kernels(path: tuple[str, ...], leaf: Any) -> bool:
    """The first convolution too, for its channels are those of the first stage."""
    return core.kernels_only(path, leaf)


def _inside(prunable: Callable[..., bool], path: tuple[str, ...], leaf: Any) -> bool:
    """All but the last layer, whose channels are the classes."""
    return prunable(path, leaf) and path[0] != "head"


def last_change(updater: core.BaseUpdater) -> int:
    """The last step at which masks change."""
    return int(np.max(np.asarray(updater.scheduler.refresh_steps())))


def graph_of(task: Task, settings: ChannelSettings) -> core.ChannelGraph:
    """Groups of the channels of a model; traced, not computed."""
    assert task.apply is not None
    params, statistics = jax.eval_shape(task.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((2, *next(task.train(0))["image"].shape[1:]), jnp.float32)
    return core.channel_graph(task.apply, nn.unbox({"params": params, "batch_stats": statistics}), {"image": image})


def shrunk(task: Task, settings: ChannelSettings, graph: core.ChannelGraph, state: State) -> tuple[Programs, State]:
    """Programs and state of the network without the channels that masks have pruned."""
    variables = {"params": state.params, "batch_stats": state.statistics}
    masks = core.unpack_masks(state.params, core.find_sparse_state(state.optimizer).masks)
    unpruned = jax.tree.map(lambda _: core.NOT_PRUNED, state.statistics)
    small = core.shrink(
        graph, variables, {"params": masks, "batch_stats": unpruned}, opt_state=state.optimizer, optimized="params"
    )

    def whole_loss(variables: Any, batch: Any) -> dict[str, Any]:
        loss, statistics = task.loss(variables["params"], variables["batch_stats"], batch)
        return {"loss": loss, "batch_stats": statistics}

    narrow = small.narrow(whole_loss)

    def loss(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Any]:
        found = narrow({"params": params, "batch_stats": statistics}, batch)
        return found["loss"], found["batch_stats"]

    sums = small.narrow(lambda variables, batch: task.evaluate(variables["params"], variables["batch_stats"], batch))
    evaluate = lambda params, statistics, batch: sums({"params": params, "batch_stats": statistics}, batch)  # noqa: E731
    update = updating(small.updater.wrap_optax(settings.transformation()))
    programs = Programs(jax.jit(jax.value_and_grad(loss, has_aux=True)), jax.jit(evaluate), update)
    return programs, State(small.params["params"], small.opt_state, small.params["batch_stats"])


def _dense_step(task: Task, settings: ChannelSettings, train: Callable[..., Any]) -> Callable[[], Point]:
    """The start of a dense run, once it is asked for."""
    return functools.lru_cache(maxsize=1)(lambda: next(train(core.NoPruning())(0)))


def _measured(point: Point, dense: Point, task: Task, shapes: Any) -> dict[str, float]:
    batch = next(task.train(0))
    found = stored(point.state.params, point.state.optimizer, size_of(shapes))
    this, that = (carrying(_stepping(each.programs, batch), each.state) for each in (point, dense))
    return {**found, **shares_of_time(this, that, TIMED_STEPS)}


def _stepping(programs: Programs, batch: Any) -> Callable[[State], Any]:
    def step(state: State) -> Any:
        state, loss = programs.step(state, batch)
        return state, (state.params, loss)

    return step
