"""Which messages of the library name a cure, and which of them errors have shown.

A message is a string of the source, with anything in place of what is formatted into
it. It names a cure if an imperative begins a clause of it: "...; take a smaller dt".
"""

from __future__ import annotations

import ast
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import otflow

__all__ = ["Message", "files", "messages", "names_a_cure"]

SOURCE = Path(otflow.__file__).parent
VERBS = (
    "add|allow|ask|average|build|call|check|choose|compute|convert|detach|differentiate"
    "|divide|do|draw|drop|enlarge|estimate|fix|flow|give|integrate|keep|leave|let|look"
    "|loosen|make|measure|mend|minimise|mix|move|multiply|name|open|override|pass"
    "|pip install|raise|read|record|reduce|refine|remove|represent|rescale|say|smooth"
    "|sort|start|state|stop|swap|take|try|use|vary|widen|work|write"
)
# It begins the text, or follows a mark, or stands in the clause after a semicolon.
CURE = re.compile(
    rf"^(?!stop |record )(?:{VERBS}) |[:,] (?:and |or )?(?:{VERBS}) "
    rf"|; .*\b(?:{VERBS})\b(?! of)|; (?:e\.g\.|or|did you mean|there are) "
)
HOLE = "\0"
# From so many characters on a text that stands once in the library is known by itself;
# of a shorter one, such as "; write X()", the traceback shows whose it is.
LONG = 30


@dataclass(frozen=True)
class Message:
    """A string of the source: where it stands, and its text with holes."""

    file: str
    line: int
    text: str

    unique: bool = True

    def is_in(self, error: BaseException) -> bool:
        """Say whether an error holds this text, whatever stands in its holes."""
        parts = self.text.split(HOLE)
        if not all(part in str(error) for part in parts):  # the quick answer
            return False
        pattern = ".*?".join(re.escape(part) for part in parts)
        if not re.search(pattern, str(error), re.DOTALL):
            return False
        known = self.unique and sum(map(len, parts)) >= LONG
        return known or self.file in files(error)


def names_a_cure(text: str) -> bool:
    """Say whether a clause of a text is an imperative, or an example ends it."""
    return CURE.search(text) is not None


def messages() -> list[Message]:
    """Return the strings of the library that name a cure.

    Contracts in ``otflow.testing`` hold strings that they expect of others.
    """
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("testing/"):
            continue
        strings = _strings(ast.parse(path.read_text(encoding="utf-8")))
        found += [
            Message(name, line, text) for line, text in strings if names_a_cure(text)
        ]
    texts = Counter(message.text for message in found)
    return [replace(m, unique=texts[m.text] == 1) for m in found]


def files(error: BaseException) -> set[str]:
    """Return the modules of the library that an error, or its cause, came through."""
    found = set()
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(SOURCE):
                found.add(path.relative_to(SOURCE).as_posix())
        cause = cause.__cause__ or cause.__context__
    return found


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings below a node, but not its docstrings."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value.replace("{}", HOLE)  # of a .format
    if isinstance(node, ast.JoinedStr):
        parts = (
            str(part.value) if isinstance(part, ast.Constant) else HOLE
            for part in node.values
        )
        yield node.lineno, "".join(parts)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from _strings(part.value)
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)
