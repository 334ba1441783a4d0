"""Objectives of sequence models as functions of arrays; reached as `logderiv.objectives`."""

from logderiv.estimators.objectives import advantages, aggregation, objective, presets, ratios, regularizers

__all__ = ["advantages", "aggregation", "objective", "presets", "ratios", "regularizers"]
