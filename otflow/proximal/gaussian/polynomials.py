"""Names of the functions of torch that lead from polynomials to polynomials."""

from __future__ import annotations


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Functions and methods of torch by their effect on the degree. LINEAR keeps the degree,
# LARGEST takes the largest degree of the arguments, PRODUCTS adds the degrees. Any
# other name ends the proof.
LINEAR = _words("""
    sum mean neg negative positive view reshape flatten unsqueeze squeeze expand
    expand_as transpose permute movedim select narrow clone contiguous roll flip
    diff cumsum trace diagonal repeat
""")
LARGEST = _words("stack cat concat concatenate add sub subtract rsub")
PRODUCTS = _words(
    "mul multiply matmul mm mv bmm dot inner outer einsum tensordot linear"
)
DIVISIONS = _words("div divide truediv true_divide")
# Python's operators with exchanged arguments.
TURNED = _words("radd rsub rmul rmatmul")
# Keywords that keep a function a polynomial (SHAPING), and keywords that may hold a
# polynomial (OPERANDS). Any other keyword ends the proof: rounding_mode rounds, and out
# writes into a tensor.
SHAPING = _words("""
    dim axis keepdim dims dim0 dim1 dim2 start end start_dim end_dim length index
    shape size shifts offset source destination n alpha equation dtype device
""")
OPERANDS = _words("input other tensors tensor mat2 vec2 vec")
# Casts have the degree of their first argument. The functions of CONSTANT depend on the
# shape and the dtype alone.
CASTS = _words("to type_as double float")
CONSTANT = _words("zeros_like ones_like new_zeros new_ones")
SHAPES = _words("shape ndim dtype device")
