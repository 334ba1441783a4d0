"""The benchmark of token log-probabilities, at tiny sizes."""

import jax
import numpy as np
import pytest

from benchmarks import harness, token_speed


def agree(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, expected)


def test_every_form_computes_the_same():
    arguments = token_speed.inputs(6, 40)
    expected = token_speed.value_and_gradients(token_speed.plain)(*arguments)
    for form in token_speed.FORMS.values():
        agree(jax.jit(token_speed.value_and_gradients(form))(*arguments), expected)


def test_torch_computes_the_same():
    pytest.importorskip("torch")
    value = token_speed.value_and_gradients(token_speed.plain)(*token_speed.inputs(6, 40))[1]
    ours = token_speed.prepare(token_speed.TORCH, 6, 40)()
    agree(tuple(ours), tuple(value))


@pytest.mark.slow
def test_the_peak_of_one_call_is_that_of_what_it_allocates():
    num, vocabulary = 1024, 16384
    logits = 4 * num * vocabulary
    peak = harness.peak_rss("benchmarks.token_speed:prepare", token_speed.PLAIN, num, vocabulary)
    assert logits < peak < 5 * logits
