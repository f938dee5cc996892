import jax
import jax.numpy as jnp
import pytest

from tests import quick


def test_jax_compiles_with_the_quick_options_inside_the_patch_and_without_them_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, original = [], quick.options_as_users_have_them

    def recorded(*args, env_options_overrides=None, **keywords):
        seen.append(env_options_overrides)
        return original(*args, env_options_overrides=env_options_overrides, **keywords)

    monkeypatch.setattr(quick, "options_as_users_have_them", recorded)
    program = jax.jit(lambda x: jnp.sin(x) * 2.0).lower(jnp.ones(3))
    with pytest.MonkeyPatch.context() as patches:
        quick.compile_quickly(patches)
        program.compile()
    assert seen == [quick.OPTIONS]
    program.compile()
    assert seen == [quick.OPTIONS]


def test_programs_are_lowered_in_one_context_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], quick.new_context

    def counted():
        made.append(original())
        return made[-1]

    monkeypatch.setattr(quick, "new_context", counted)
    for files in (1, 2):
        quick.forget_context()
        texts = [jax.jit(lambda x, factor=factor: x * factor).lower(jnp.ones(3)).as_text() for factor in (3.0, 5.0)]
        assert "3.0" in texts[0]
        assert "5.0" in texts[1]
        assert len(made) == files
