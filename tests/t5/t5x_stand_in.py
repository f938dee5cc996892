"""The protocols of T5X that the shim meets (as of commit cc342d4), written anew: T5X is on no package index."""

import sys
import types
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
import pytest
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec


@flax.struct.dataclass
class OptimizerState:
    step: Any
    param_states: Any


class OptimizerDef:
    def __init__(self, hyper_params: Any) -> None:
        self.hyper_params = hyper_params

    def update_hyper_params(self, **overrides: Any) -> Any:
        return self.hyper_params.replace(**overrides)

    def create(self, target: Any) -> Any:
        return Optimizer(self, self.init_state(target), target)


class Optimizer(flax.struct.PyTreeNode):
    optimizer_def: Any = flax.struct.field(pytree_node=False)
    state: Any = None
    target: Any = None

    def apply_gradient(self, grads: Any, **overrides: Any) -> Any:
        hyper_params = self.optimizer_def.update_hyper_params(**overrides)
        target, state = self.optimizer_def.apply_gradient(hyper_params, self.target, self.state, grads)
        return self.replace(target=target, state=state)

    def state_dict(self) -> Any:
        return self.optimizer_def.state_dict(self.target, self.state)

    def restore_state(self, state_dict: Any) -> Any:
        target, state = self.optimizer_def.restore_state(self.target, self.state, state_dict)
        return self.replace(target=target, state=state)


@flax.struct.dataclass
class HyperParams:
    learning_rate: Any = None


class OptaxWrapper(OptimizerDef):
    """Takes its learning rate from optax, not from T5X."""

    def __init__(self, optax_optimizer: Any) -> None:
        super().__init__(HyperParams())
        self.optax_optimizer = optax_optimizer

    def init_state(self, params: Any) -> OptimizerState:
        return OptimizerState(0, self.optax_optimizer.init(params))

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> Any:
        updates, new = self.optax_optimizer.update(grads, state.param_states, params)
        return optax.apply_updates(params, updates), OptimizerState(state.step + 1, new)


class OptaxStatePartitionRules:
    """The private table: a state whose type is not in it can't be partitioned."""

    _RULES: dict[type, Any] = {optax.EmptyState: lambda state, params_axes: state}  # noqa: RUF012


@flax.struct.dataclass
class AdafactorParamState:
    v_row: Any
    v_col: Any
    v: Any


class Adafactor(OptimizerDef):
    """Matrices of two long axes have factored moments; a placeholder of one entry stands for what there is not."""

    def __init__(self, learning_rate: Any = None, min_dim_size_to_factor: int = 8) -> None:
        super().__init__(HyperParams(learning_rate))
        self.shortest, self.param_axes = min_dim_size_to_factor, None

    def set_param_axes(self, param_logical_axes: Any) -> None:
        self.param_axes = param_logical_axes

    def _is_factored(self, param: Any) -> bool:
        return param.ndim == 2 and min(param.shape) >= self.shortest

    def init_state(self, params: Any) -> OptimizerState:
        def of_param(param: Any) -> AdafactorParamState:
            if self._is_factored(param):
                return AdafactorParamState(jnp.zeros(param.shape[0]), jnp.zeros(param.shape[1]), jnp.zeros(1))
            return AdafactorParamState(jnp.zeros(1), jnp.zeros(1), jnp.zeros(param.shape))

        return OptimizerState(jnp.zeros((), jnp.int32), jax.tree.map(of_param, params))

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> Any:
        fresh = (state.step + 1.0) ** -0.8

        def of_param(param: Any, moments: AdafactorParamState, grad: Any) -> Any:
            mean = lambda old, new: (1 - fresh) * old + fresh * new  # noqa: E731
            square = grad**2 + 1e-30
            if self._is_factored(param):
                row, column = mean(moments.v_row, square.mean(1)), mean(moments.v_col, square.mean(0))
                moments, v = moments.replace(v_row=row, v_col=column), row[:, None] * column[None] / row.mean()
            else:
                moments, v = moments.replace(v=(v := mean(moments.v, square))), v
            scale = jnp.maximum(jnp.sqrt(jnp.mean(param**2)), 1e-3)
            return param - hyper_params.learning_rate * scale * grad * v**-0.5, moments

        both = jax.tree.map(of_param, params, state.param_states, grads)
        new_params, new_states = (jax.tree.map(lambda _, pair, i=i: pair[i], params, both) for i in (0, 1))
        return new_params, OptimizerState(state.step + 1, new_states)


class FlaxOptimTrainState(flax.struct.PyTreeNode):
    _optimizer: Any
    params_axes: Any = flax.struct.field(default=None, pytree_node=False)

    @classmethod
    def create(cls, optimizer_def: Any, model_variables: Any) -> Any:
        axes = model_variables.get("params_axes")
        if hasattr(optimizer_def, "set_param_axes"):
            if axes is None:
                raise ValueError("the optimizer wants the axes of parameters, and the model does not give them")
            optimizer_def.set_param_axes(axes)
        return cls(optimizer_def.create(flax.core.freeze(model_variables["params"])), axes and flax.core.freeze(axes))

    step = property(lambda self: self._optimizer.state.step)
    params = property(lambda self: self._optimizer.target)
    param_states = property(lambda self: self._optimizer.state.param_states)

    def apply_gradient(self, grads: Any, learning_rate: Any) -> Any:
        return self.replace(_optimizer=self._optimizer.apply_gradient(grads, learning_rate=learning_rate))

    def state_dict(self) -> Any:
        return self._optimizer.state_dict()

    def restore_state(self, state_dict: Any) -> Any:
        return self.replace(_optimizer=self._optimizer.restore_state(state_dict))

    def as_logical_axes(self) -> Any:
        return self.replace(
            _optimizer=self._optimizer.optimizer_def.derive_logical_axes(self._optimizer, self.params_axes)
        )


class PjitPartitioner:
    def __init__(self, logical_axis_rules: dict[str, str | None]) -> None:
        self.rules = logical_axis_rules

    def get_mesh_axes(self, train_state: Any) -> Any:
        """Through the state dict, in which T5X has no empty parts."""
        logical = train_state.as_logical_axes()
        flat = flatten_dict(logical.state_dict(), keep_empty_nodes=True)
        assert empty_node not in flat.values()
        on_mesh = {path: names and PartitionSpec(*map(self.rules.get, names)) for path, names in flat.items()}
        return logical.restore_state(unflatten_dict(on_mesh))


class AveragePerStep:
    def __init__(self, value: Any) -> None:
        self.value = value

    from_model_output = classmethod(lambda cls, values: cls(values))


class Trainer:
    def __init__(self, weight_metrics_computer: Any = None) -> None:
        self.weight_metrics_computer = weight_metrics_computer


class RestoreCheckpointConfig:
    def __init__(
        self, path: Any = (), fallback_to_scratch: bool = False, state_transformation_fns: Any = (), mode: str = ""
    ) -> None:
        self.state_transformation_fns, self.fallback_to_scratch = state_transformation_fns, fallback_to_scratch


class EncoderDecoderModel:
    def __init__(self, optimizer_def: Any) -> None:
        self.optimizer_def = optimizer_def


MODULES: dict[str, tuple[type, ...]] = {
    "adafactor": (Adafactor,),
    "metrics": (AveragePerStep,),
    "models": (EncoderDecoderModel,),
    "optimizers": (OptimizerState, OptimizerDef, Optimizer, OptaxWrapper, OptaxStatePartitionRules),
    "partitioning": (PjitPartitioner,),
    "train_state": (FlaxOptimTrainState,),
    "trainer": (Trainer,),
    "utils": (RestoreCheckpointConfig,),
}


def install(patches: pytest.MonkeyPatch) -> None:
    """Lets `import t5x` find this."""
    package = types.ModuleType("t5x")
    package.__path__ = []  # type: ignore[attr-defined]
    patches.setitem(sys.modules, "t5x", package)
    for name, members in MODULES.items():
        module = types.ModuleType(f"t5x.{name}")
        for member in members:
            setattr(module, member.__name__, member)
        setattr(package, name, module)
        patches.setitem(sys.modules, module.__name__, module)
