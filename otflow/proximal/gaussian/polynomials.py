"""Which functions of torch make a polynomial of polynomials, by name."""

from __future__ import annotations

# Names of functions and methods of torch, by what they do to the degree of a polynomial
# in each coordinate. The first leave it, the second take the greatest of their
# arguments', the third add them. All others end the proof.
LINEAR = frozenset(
    [
        "sum",
        "mean",
        "neg",
        "negative",
        "positive",
        "view",
        "reshape",
        "flatten",
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "transpose",
        "permute",
        "movedim",
        "select",
        "narrow",
        "clone",
        "contiguous",
        "roll",
        "flip",
        "diff",
        "cumsum",
        "trace",
        "diagonal",
        "repeat",
    ]
)
LARGEST = frozenset(
    ["add", "sub", "subtract", "rsub", "stack", "cat", "concat", "concatenate"]
)
PRODUCTS = frozenset(
    [
        "mul",
        "multiply",
        "matmul",
        "mm",
        "mv",
        "bmm",
        "dot",
        "inner",
        "outer",
        "einsum",
        "tensordot",
        "linear",
    ]
)
DIVISIONS = frozenset(["div", "divide", "truediv", "true_divide"])
# Python's operators, with the arguments in turn.
TURNED = frozenset(["radd", "rsub", "rmul", "rmatmul"])
# Keywords that leave a function a polynomial, and those that may be one themselves.
# All others end the proof: rounding_mode and out do what no degree tells.
SHAPING = frozenset(
    [
        "dim",
        "axis",
        "keepdim",
        "dims",
        "dim0",
        "dim1",
        "dim2",
        "start",
        "end",
        "start_dim",
        "end_dim",
        "length",
        "index",
        "shape",
        "size",
        "shifts",
        "offset",
        "source",
        "destination",
        "n",
        "alpha",
        "equation",
        "dtype",
        "device",
    ]
)
OPERANDS = frozenset(["input", "other", "tensors", "tensor", "mat2", "vec2", "vec"])
# Casts have the degree of their first argument; the others see shape and kind alone.
CASTS = frozenset(["to", "type_as", "double", "float"])
CONSTANT = frozenset(["zeros_like", "ones_like", "new_zeros", "new_ones"])
SHAPES = frozenset(["shape", "ndim", "dtype", "device"])
