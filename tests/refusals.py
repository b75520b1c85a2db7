"""What a test asks of the message of an error: the facts, not the wording."""

from __future__ import annotations

import re

import pytest

__all__ = ["facts", "refused"]

# Up to this length a text is a key word or two, and is asked for as it is.
SHORT = 40
# Names, numbers, shapes, calls and quoted values: they are true or false, not style.
FACT = re.compile(r"[\d_()\[\]='`<>.@]")


def facts(message: str) -> list[str]:
    """Return what the text of an error must hold, if its wording may change.

    A short text whole; of a long one its first word, the argument that was wrong, and
    every word that is a name, a number, a shape or a value.
    """
    if len(message) <= SHORT:
        return [message]
    first, *words = (word.strip(".,;:") for word in message.split())
    return [first, *filter(FACT.search, words)]


def refused(kind: type[BaseException], message: str):
    """Expect an error of this kind that states the facts of `message`."""

    def check(error: BaseException) -> bool:
        missing = [fact for fact in facts(message) if fact not in str(error)]
        assert not missing, f"{missing} not in {str(error)!r}"
        return True

    return pytest.raises(kind, check=check)
