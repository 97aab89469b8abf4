"""The rules by which ATen operations become arrays of expressions, one module a family."""

from ebm_samplers.fused.rules import (
    activations,
    assembly,
    elementwise,
    indexing,
    products,
    reductions,
    views,
)
from ebm_samplers.fused.rules.activations import SLOPES
from ebm_samplers.fused.rules.registry import RULES, VIEWS

__all__ = [
    "RULES",
    "SLOPES",
    "VIEWS",
    "activations",
    "assembly",
    "elementwise",
    "indexing",
    "products",
    "reductions",
    "views",
]
