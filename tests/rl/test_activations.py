import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dopamine.jax import continuous_networks, networks

from sparse_plugins.rl.plasticity.activations import hidden_activations, layer_graph, penultimate_features, recyclable

KEY = jax.random.PRNGKey(0)
PIXELS = jax.random.randint(KEY, (3, 16, 16, 4), 0, 255).astype(jnp.uint8)
SUPPORT = jnp.linspace(-1.0, 1.0, 5)
NATURE = ["Conv_0", "Conv_1", "Conv_2", "Dense_0"]

# Network, what it is given beside the state, keywords, hidden layers, rows of features, recyclable layers.
NETWORKS = {
    "nature": (networks.NatureDQNNetwork(3), (), {}, NATURE, 3, NATURE),
    "rainbow": (networks.RainbowNetwork(3, 5), (SUPPORT,), {}, NATURE, 3, NATURE),
    "full rainbow": (
        networks.FullRainbowNetwork(3, 5),
        (SUPPORT,),
        {"key": KEY},
        [*NATURE[:3], "NoisyNetwork_0"],
        3,
        [*NATURE[:3], "NoisyNetwork_0"],
    ),
    "implicit quantile": (
        networks.ImplicitQuantileNetwork(3, 8),
        (6, KEY),
        {},
        [*NATURE, "Dense_1"],
        18,
        ["Conv_0", "Conv_1", "Dense_1"],  # the last maps are multiplied with the embedding of quantiles
    ),
    "impala": (
        networks.ImpalaDQNNetwork(3),
        (),
        {},
        [*(f"encoder/_stacks_{stack}/Conv_{conv}" for stack in range(3) for conv in range(5)), "Dense_0"],
        3,
        # The first layer of each residual block; what the second returns is added to the block's input.
        [*(f"encoder/_stacks_{stack}/Conv_{conv}" for stack in range(3) for conv in (1, 3)), "Dense_0"],
    ),
}


def paths(names: list[str]) -> list[str]:
    return [f"params/{name}" for name in names]


def shapes_and_graph(network, *inputs, **options):
    """Shapes of hidden activations and features, and the graph, without compiling anything."""
    graphs = []

    def view():
        variables = network.init(KEY, PIXELS[0], *inputs, **options)
        graphs.append(layer_graph(network, variables, PIXELS[0], *inputs, **options))
        hidden = hidden_activations(network, variables, PIXELS, *inputs, **options)
        return hidden, penultimate_features(network, variables, PIXELS, *inputs, **options)

    return *jax.eval_shape(view), graphs[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_dopamine_networks_on_pixels(name):
    network, inputs, options, hidden, rows, private = NETWORKS[name]
    activations, features, graph = shapes_and_graph(network, *inputs, **options)
    assert list(recyclable(graph)) == paths(private)
    assert set(activations) == set(paths(hidden))
    assert features.shape == (rows, 512)
    assert all(layer.shape[0] == 3 for layer in activations.values())


def test_layers_that_read_each_other_through_sums_are_told_apart():
    _, _, graph = shapes_and_graph(networks.ImpalaDQNNetwork(3))
    stack = lambda conv: f"params/encoder/_stacks_2/Conv_{conv}"  # noqa: E731
    assert graph[stack(1)] == (stack(2),)
    assert graph[stack(2)] == (stack(3), "params/Dense_0")
    assert graph["params/Dense_1"] == ()


def test_both_heads_of_a_dueling_network_are_outputs():
    _, _, graph = shapes_and_graph(networks.FullRainbowNetwork(3, 5, noisy=False), SUPPORT, key=KEY)
    assert graph["params/Dense_0"] == ("params/Dense_1", "params/Dense_2")
    assert graph["params/Dense_1"] == graph["params/Dense_2"] == ()


def test_activations_are_those_of_a_forward_pass_by_hand():
    network = networks.ClassicControlDQNNetwork(2, hidden_units=5, min_vals=(-1.0, -2.0), max_vals=(1.0, 2.0))
    states = np.array([[0.5, 1.0], [-1.0, 0.0], [0.2, -2.0]], np.float32)
    variables = network.init(KEY, states[0])
    layer = lambda name, x: x @ np.asarray(variables["params"][name]["kernel"])  # noqa: E731 - biases are 0
    first = np.maximum(layer("layers_0", states / np.array([1.0, 2.0])), 0)
    second = np.maximum(layer("layers_1", first), 0)
    activations = hidden_activations(network, variables, states)
    assert list(activations) == ["params/layers_0", "params/layers_1"]
    np.testing.assert_allclose(activations["params/layers_0"], first, atol=1e-6)
    np.testing.assert_allclose(activations["params/layers_1"], second, atol=1e-6)
    np.testing.assert_allclose(penultimate_features(network, variables, states), second, atol=1e-6)


def test_feature_maps_are_those_of_a_convolution():
    network = nn.Sequential([nn.Conv(3, (1, 1)), nn.relu, lambda x: x.reshape(-1), nn.Dense(2)])
    pictures = jax.random.normal(KEY, (2, 2, 2, 4))
    variables = network.init(KEY, pictures[0])
    kernel = np.asarray(variables["params"]["layers_0"]["kernel"])[0, 0]
    maps = hidden_activations(network, variables, pictures)["params/layers_0"]
    np.testing.assert_allclose(maps, np.maximum(np.asarray(pictures) @ kernel, 0), atol=1e-6)
    np.testing.assert_allclose(penultimate_features(network, variables, pictures), maps.reshape(2, -1))


def test_the_actor_of_a_continuous_agent_is_reached_by_method():
    network = continuous_networks.ActorCriticNetwork((2,), num_layers=2, hidden_units=4)
    states = jnp.ones((3, 6))
    variables = network.init(KEY, states[0], KEY)
    graph = layer_graph(network, variables, states[0], KEY, method=network.actor)
    assert len([name for name in graph if graph[name]]) == 2
    assert all("ActorNetwork" in name or "actor" in name for name in graph)
    assert penultimate_features(network, variables, states, KEY, method=network.actor).shape == (3, 4)


def test_a_layer_that_is_called_twice_reads_itself():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4)
            return nn.Dense(2)(nn.relu(layer(nn.relu(layer(x)))))

    variables = Twice().init(KEY, jnp.ones(4))
    graph = layer_graph(Twice(), variables, jnp.ones(4))
    assert graph == {"params/Dense_0": ("params/Dense_0", "params/Dense_1"), "params/Dense_1": ()}
    assert recyclable(graph) == {}
    assert hidden_activations(Twice(), variables, jnp.ones((3, 4)))["params/Dense_0"].shape == (3, 2, 4)


def test_other_nonlinearities_can_be_named():
    network = nn.Sequential([nn.Dense(3), nn.tanh, nn.Dense(2)])
    states = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
    variables = network.init(KEY, states[0])
    plain, bent = (hidden_activations(network, variables, states, activation=f) for f in (lambda x: x, jnp.tanh))
    np.testing.assert_allclose(bent["params/layers_0"], np.tanh(plain["params/layers_0"]), rtol=1e-5)


def test_a_network_without_layers_is_refused():
    network = nn.LayerNorm()
    variables = network.init(KEY, jnp.ones(4))
    with pytest.raises(ValueError, match="LayerNorm calls no module that owns a parameter named kernel or kernel_mu"):
        hidden_activations(network, variables, jnp.ones((2, 4)))
