import gc
import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA stops at a flag it does not know
    # The older emitters, and each module in one piece: compiles in a third of the time.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import jax
import pytest

from tests import tf32

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_disable_most_optimizations", True)  # each program runs once or twice: compiling is what costs

if tf32.ALWAYS:
    tf32.install()

gc.freeze()  # JAX collects its own garbage each time that Python does; rarely is often enough
gc.set_threshold(100_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _fresh_caches():
    """Hundreds of compiled programs exhaust the process's memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where a benchmark that a test runs leaves its row and its figure."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    from benchmarks import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    yield tmp_path
    plt.close("all")


@pytest.fixture
def as_shipped():
    """Numbers as users have them: suites and peers mix dtypes, use keys twice, and some of them work in 32 bits alone."""
    promotions = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), jax.debug_key_reuse(False), promotions[0], promotions[1]:
        yield


@pytest.fixture
def broadcasting():
    """What people would write broadcasts and mixes dtypes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def standard_promotion():
    """Optax, flax and rlax mix dtypes; what runs inside them cannot be strict."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def blocks_of_a_cpu(monkeypatch):
    """Default blocks as on a CPU, wherever the test runs: an accelerator's hold all of what a test computes."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")


@pytest.fixture
def nans_are_errors():
    """A program that ends with a NaN is a mistake, also where nothing was measured."""
    with jax.debug_nans(True):
        yield


@pytest.fixture
def rlax(standard_promotion):
    """DeepMind's rlax as an oracle, where it is installed (extra `peers`)."""
    return pytest.importorskip("rlax")
