"""The comparison with the frameworks' own functions, on functions that are made up; what is installed is run, too."""

import numpy as np
import pytest

from benchmarks import framework_losses, frameworks
from benchmarks.frameworks import Row
from logderiv.objectives import PRESETS

pytestmark = pytest.mark.usefixtures("as_shipped")


def importance_sampling(batch, advantages, scale=1.0, own=False):
    """Tinker's, and its derivative by hand."""
    terms = -np.exp(batch.log_probs - batch.sampler) * advantages[:, None] * batch.mask * scale
    terms = terms / batch.mask.sum(axis=1, keepdims=True) if own else terms
    return terms.sum(), terms


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        (importance_sampling, True),
        (lambda *x: importance_sampling(*x, scale=1 + 1e-11), False),
        (lambda *x: importance_sampling(*x, own=True), False),
        (lambda *x: (importance_sampling(*x)[0], np.nan * importance_sampling(*x)[1]), False),
        (lambda *x: (importance_sampling(*x)[0] + 1e-9, importance_sampling(*x)[1]), False),
    ],
)
def test_a_function_that_is_another_is_told(loss, kept, monkeypatch):
    monkeypatch.setattr(frameworks, "ROWS", {"tinker_importance_sampling": Row("numpy", loss)})
    report = frameworks.main(quick=True)
    assert len(report.bounds) == 4
    assert all(bound.holds for bound in report.bounds) == kept


def test_what_is_not_installed_is_reported_as_not_run(monkeypatch):
    monkeypatch.setattr(framework_losses, "version", lambda _: None)
    report = frameworks.main(quick=True)
    (control,) = report.bounds
    assert control.holds
    (table,) = report.tables
    assert [row["preset"] for row in table.rows] == list(PRESETS)
    assert {row["why"] for row in table.rows} == {"not installed", "not released"}
    assert "nan" not in str(table)


def test_batches_have_what_the_functions_are_tried_on():
    """Holes, answers of one token and of all, and ratios beyond every bound on both sides."""
    batch = frameworks.batch_of(0)
    lengths, last = batch.mask.sum(axis=1), batch.at_last(batch.rewards)
    assert lengths.min() == 1
    assert lengths.max() == frameworks.TOKENS
    assert np.any(np.diff(batch.mask.astype(int), axis=1) == 1)
    np.testing.assert_array_equal(last.sum(axis=1), batch.rewards)
    assert np.all(batch.mask[last != 0])
    moved = (batch.log_probs - batch.old)[batch.mask]
    assert np.mean(moved > 1.7) > 0.05 < np.mean(moved < -1.7)


@pytest.mark.slow
@pytest.mark.parametrize("name", frameworks.ROWS)
def test_a_preset_is_the_frameworks_own_function(name):
    row = frameworks.ROWS[name]
    if framework_losses.version(row.distribution) is None:
        pytest.skip(f"{row.distribution} is not installed: pip install -e '.[frameworks]'")
    found = frameworks.compare(name, row, [frameworks.batch_of(7)])
    assert max(found["gradient"], found["value"] or 0.0) <= row.limit
