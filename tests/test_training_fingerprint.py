"""Two objects that would train otherwise read otherwise; one that is made again, in another process too, reads the same."""

import collections
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv._core.fingerprint import differ, static_text

# Source of something called `thing`, and what is another constant, name or attribute in the second one.
WRITTEN = {
    "a constant": ("thing = lambda p, o: {} * p[o]", "1", "-3"),
    "an operator": ("thing = lambda p, o: p {} o", "+", "-"),
    "a name": ("thing = lambda p: jnp.{}(p)", "sin", "cos"),
    "a default": ("thing = lambda p, scale={}: scale * p", "1", "2"),
    "a keyword": ("def thing(p, *, scale={}): return scale * p", "1", "2"),
    "what is closed over": ("thing = (lambda scale: lambda p: scale * p)({})", "1", "2"),
    "a nested function": ("thing = lambda p: (lambda x: {} * x)(p)", "2", "3"),
    "a comprehension": ("thing = lambda p: sum({} * x for x in p)", "2", "3"),
    "a decorated function": ("thing = jax.jit(lambda x: {} * x)", "2", "3"),
    "a rule of one's own": ("thing = jax.custom_jvp(lambda x: {} * x)", "2", "3"),
    "a keyword that is passed": ("thing = lambda p: jnp.sum(p, axis={})", "0", "1"),
    "an attribute": ("class World:\n def __init__(self, pay): self.pay = pay\nthing = World({})", "1.0", "-5.0"),
    "a slot": ("class World:\n __slots__ = ('pay',)\nthing = World()\nthing.pay = {}", "1.0", "2.0"),
    "an attribute of the class": ("class World:\n pay = {}\nthing = World()", "1.0", "2.0"),
    "a method": ("class World:\n def step(self): return {}\nthing = World()", "1.0", "2.0"),
    "a method of a base": (
        "class Base:\n def step(self): return {}\nclass World(Base): pass\nthing = World()",
        "1",
        "2",
    ),
    "a property": ("class World:\n @property\n def pay(self): return {}\nthing = World()", "1", "2"),
    "a static method": ("class World:\n @staticmethod\n def pay(): return {}\nthing = World()", "1", "2"),
    "a call": ("class World:\n def __call__(self): return {}\nthing = World()", "1", "2"),
    "a class": ("class World:\n def step(self): return {}\nthing = World", "1", "2"),
    "a bound method": ("class World:\n def step(self): return {}\nthing = World().step", "1", "2"),
    "a method of a dataclass": (
        "@dataclasses.dataclass\nclass World:\n def f(self): return {}\nthing = World()",
        "1",
        "2",
    ),
    "a function in an attribute": ("class World: pass\nthing = World()\nthing.pay = lambda: {}", "1", "2"),
    "a list in an attribute": ("class World: pass\nthing = World()\nthing.pays = [1, {}]", "1", "2"),
    "a policy": ("thing = ld.FunctionPolicy(lambda p, o: ld.Categorical({} * p))", "1", "2"),
    "a value function": ("thing = ld.baselines.Value(lambda o: {} * o)", "1", "2"),
    "a reward": ("thing = ld.processes.birth_death(0, 2.0, terminal=lambda x: {} * x[0])", "1", "2"),
}


def written(source):
    names = {"jax": jax, "jnp": jnp, "ld": ld, "dataclasses": dataclasses}
    exec(source, names)
    return static_text(names["thing"])


@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_user_wrote_is_seen(name):
    source, one, other = WRITTEN[name]
    assert differ(written(source.format(one)), written(source.format(other)))
    assert not differ(written(source.format(one)), written("\n" + source.format(one)))


def pairs():
    """Objects of other libraries, which differ in one thing."""
    return {
        "schedule": [optax.cosine_decay_schedule(0.1, steps) for steps in (4, 8)],
        "generator": [np.random.default_rng(seed) for seed in (0, 1)],
        "deque": [collections.deque([x]) for x in (1, 2)],
        "path": [pathlib.Path(name) for name in "ab"],
        "dtype": [np.dtype(name) for name in ("f4", "f8")],
        "objects": [np.array([x, None]) for x in (1, 2)],
        "partial": [functools.partial(jnp.clip, min=least) for least in (0, 1)],
        "network": [ld.MLP(2, hidden=(n,)) for n in (4, 5)],
        "long": ["a" * 1000 + x for x in "ab"],
        "key": [jax.random.key(seed) for seed in (0, 1)],
    }


def test_objects_of_libraries_are_seen_by_what_pickle_keeps_of_them():
    first, again = pairs(), pairs()
    for name, (one, other) in first.items():
        hash(one) if name == "path" else None  # which it would remember
        assert differ(static_text(one), static_text(other)), name
        assert static_text(one) == static_text(again[name][0]), name


class Computing:
    """What it has beside its attributes says nothing: a lock, what it computes once, itself."""

    def __init__(self):
        self.lock, self.me = threading.Lock(), self

    @functools.cached_property
    def table(self):
        """The first docstring."""
        return os.getpid()


def test_what_is_no_part_of_a_run_is_not_seen():
    thing = Computing()
    before = static_text(thing)
    assert thing.table > 0
    assert static_text(thing) == before == static_text(Computing())
    assert written("def thing(x):\n 'One.'\n return x") == written(
        "def thing(x):\n 'Other.'\n\n # says more\n return x"
    )


def test_another_process_reads_the_same_and_another_version_of_python_looks_at_constants_and_names(monkeypatch):
    code = f"from {__name__} import *; print([static_text(x) for x in (Computing(), *pairs().values())])"
    where = os.environ | {"PYTHONHASHSEED": "1"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=where)
    assert shown.stdout.strip() == str([static_text(x) for x in (Computing(), *pairs().values())])
    one, other, operator = (written(f"thing = lambda p, q: {x}") for x in ("2 * p + q", "3 * p + q", "2 * p - q"))
    monkeypatch.setattr("logderiv._core.fingerprint._VERSION", "3.99.0")
    newer = written("thing = lambda p, q: 2 * p + q")
    assert newer != one
    assert not differ(newer, one)
    assert differ(newer, other)
    assert differ(one, operator)
    assert not differ(newer, operator)
