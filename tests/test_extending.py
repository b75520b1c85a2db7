"""The page on extending: its classes of tests are collected here, and its sizes held.

`test_tutorials.py` runs the rest of the page.
"""

from __future__ import annotations

import ast

import pytest

from tests.test_layers import code_lines
from tests.test_tutorials import ROOT, code_blocks

PAGE = ROOT / "docs" / "extending.rst"
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef)


def defined() -> ast.Module:
    """Return the imports and classes of the page, with the lines of the page."""
    nodes = []
    for start, block in code_blocks(PAGE):
        tree = ast.parse("\n" * start + block)
        nodes += [node for node in tree.body if isinstance(node, DEFINITIONS)]
    return ast.Module(nodes, [])


exec(compile(defined(), str(PAGE), "exec"), globals())


def lines_of(name: str) -> int:
    """Return how many lines of code a class of the page has, without docstrings."""
    for _, block in code_blocks(PAGE):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                source = ast.get_source_segment(block, node) or ""
                return len(code_lines(source, ast.parse(source)))
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("Whiteness", 6),
        ("TestWhiteness", 5),
        ("SoftLog", 6),
        ("TestSoftLog", 5),
        ("Midpoint", 12),
        ("TestMidpoint", 10),
        ("Symmetric", 60),
        ("TestSymmetric", 15),
        ("Gated", 10),
        ("TestGated", 6),
        ("FixedPoint", 40),
        ("TestFixedPoint", 10),
    ],
)
def test_an_extension_is_short(name, most):
    assert 3 <= lines_of(name) <= most


def test_one_of_each_kind_is_held_to_its_contract():
    bases = {
        base.id
        for node in defined().body
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    kinds = {"Functional", "Scheme", "Measure", "Proximal"}
    assert bases >= {f"{kind}Contract" for kind in kinds}
