"""What a trial is: a problem drawn from a seed, run, and judged."""

from __future__ import annotations

import enum
import math
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import otflow as of

__all__ = ["Family", "Outcome", "Trial", "Verdict", "run_trial"]

# Guarantees that claim something of the true step, and so may be false.
CLAIMS = ("exact", "optimal", "stationary", "stages")
# Kinds of errors that a caller is promised; what else arises is a fault.
TYPED = (of.errors.OtflowError, ValueError, TypeError, MemoryError)
PACKAGE = str(Path(of.__file__).parent)
# They come from below with types of the promised kind: the text tells them.
FOREIGN = (
    "size of tensor",
    "mat1 and mat2",
    "expected scalar type",
    "unsupported operand",
    "'nonetype'",
    "positional argument",
    "could not be broadcast",
)


class Verdict(enum.IntEnum):
    """What came of a trial; the worst counts."""

    OK = 0
    FLAGGED = 1
    REFUSED = 2
    UNTYPED = 3
    TIMEOUT = 4
    NONFINITE = 5
    FALSE = 6

    @property
    def is_failure(self) -> bool:
        """Whether it makes the campaign fail, once is enough."""
        return self >= Verdict.UNTYPED


@dataclass(frozen=True)
class Outcome:
    """The verdict on one trial, with its reasons."""

    family: str
    seed: int
    verdict: Verdict
    seconds: float
    problem: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Random problems of one kind, and how many of them make a campaign."""

    name: str
    run: Callable[[Trial], None]
    trials: int
    # CPU time that one trial may take.
    seconds: float = 10.0


class TimeIsUpError(BaseException):
    """Raised by the alarm; not an Exception, so that nothing under test catches it."""


@dataclass
class Trial:
    """Draws a problem and collects what is found wrong with its result.

    `rng` is the only source of chance. A family describes the problem by `says`, calls
    otflow, and compares; `converged` is what the solver said of itself.
    """

    seed: int
    rng: np.random.Generator
    problem: str = ""
    converged: bool = True
    findings: list[tuple[Verdict, str]] = field(default_factory=list)

    # Drawing --------------------------------------------------------------------------

    def says(self, **parts: Any) -> None:
        """Add to the description of the problem."""
        texts = (
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in parts.items()
        )
        self.problem = " ".join([self.problem, *texts]).strip()

    def log_uniform(self, low: float, high: float) -> float:
        """Draw 10^u, u uniform between the logarithms of the ends."""
        return float(10 ** self.rng.uniform(math.log10(low), math.log10(high)))

    def choice(self, *options: Any) -> Any:
        """Draw one of the options."""
        return options[int(self.rng.integers(len(options)))]

    def dtype(self) -> torch.dtype:
        """Draw float32 or float64."""
        dtype = self.choice(torch.float32, torch.float64)
        self.says(dtype=str(dtype).removeprefix("torch."))
        return dtype

    def scale_and_offset(self, most: float = 1e6) -> tuple[float, float]:
        """Draw a length from 1e-6 to 1e6, and an offset of 0 or up to `most` times it.

        Both are rounded to a few bits, so that float32 holds them exactly.
        """
        scale = 2.0 ** round(math.log2(self.log_uniform(1e-6, 1e6)))
        offset = 0.0
        if self.rng.random() < 0.5:
            power = round(math.log2(self.log_uniform(1.0, most)))
            offset = self.choice(-1.0, 1.0) * scale * 2.0**power
        self.says(scale=scale, offset=offset)
        return scale, offset

    # Judging --------------------------------------------------------------------------

    def false_if(self, wrong: bool, text: str) -> None:
        """Note a certificate, or a converged result, that the reference refutes."""
        if wrong:
            self.findings.append((Verdict.FALSE, text))

    def finite(self, **values: Any) -> bool:
        """Note every value that is NaN or infinite; None is allowed."""
        good = True
        for name, value in values.items():
            if value is None:
                continue
            entries = value.detach() if isinstance(value, torch.Tensor) else value
            if not bool(np.isfinite(np.asarray(entries, dtype=float)).all()):
                self.findings.append((Verdict.NONFINITE, f"{name} is not finite"))
                good = False
        return good

    def obeys(self, certificate: Mapping[str, Any], dt: float, noise: float) -> None:
        """Hold a certificate to what its words mean; `noise` is that of the energies.

        Numbers are finite; nothing is certified that did not converge, rose, or has a
        negative decrease; "exact" has a bound, and nothing else has one.
        """
        c = certificate
        self.converged = self.converged and bool(c["converged"])
        numbers = {
            k: v
            for k, v in c.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)
        }
        if not self.finite(**numbers):
            return
        claims, certified = c["guarantee"] in CLAIMS, bool(c["certified"])
        self.false_if(certified and not c["converged"], "certified, not converged")
        self.false_if(
            certified and not claims, f"certified with guarantee {c['guarantee']!r}"
        )
        rise = c["energy_after"] - c["energy_before"]
        self.false_if(
            certified and rise > noise, f"certified, and the energy rose by {rise:.3g}"
        )
        decrease = c["decrease"]
        if certified and decrease is not None:
            self.false_if(decrease < -noise, f"certified, with decrease {decrease:.3g}")
            if c["w2"] is not None:
                own = -rise - c["w2"] ** 2 / (2 * dt)
                self.false_if(
                    abs(own - decrease) > noise + 1e-9 * abs(decrease),
                    f"decrease {decrease:.6g} is not that of its w2, {own:.6g}",
                )
        self.false_if(
            c["guarantee"] == "exact" and c.get("bound") is None, "exact without bound"
        )

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings; without any, whether the solver converged."""
        quiet = Verdict.OK if self.converged else Verdict.FLAGGED
        return max((v for v, _ in self.findings), default=quiet)


def run_trial(family: Family, seed: int, *, loud: bool = False) -> Outcome:
    """Run one trial under its limit of CPU time, and judge whatever it raises."""
    entropy = [seed, *family.name.encode()]
    trial = Trial(seed, np.random.default_rng(entropy))
    torch.manual_seed(seed)
    # The limit counts the CPU time of all threads, and idle ones spin.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    previous = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, family.seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            family.run(trial)
    except TimeIsUpError:
        text = f"still running after {family.seconds:g} s of CPU time"
        trial.findings.append((Verdict.TIMEOUT, text))
    except Exception as error:
        if loud:
            traceback.print_exc()
        trial.findings.append(_judged(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, previous)
        torch.set_num_threads(threads)
    seconds = time.process_time() - start
    worst = trial.verdict
    notes = _notes(trial.findings, worst)
    return Outcome(family.name, seed, worst, seconds, trial.problem, notes)


def _notes(findings: Iterable[tuple[Verdict, str]], worst: Verdict) -> tuple[str, ...]:
    return tuple(text for verdict, text in findings if verdict == worst)


def _ring(signum: int, frame: FrameType | None) -> None:
    raise TimeIsUpError


def _judged(error: Exception) -> tuple[Verdict, str]:
    """Tell a refusal with a message from an error that leaked from below."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    message = " ".join(str(error).split())[:240]
    text = f"{type(error).__name__} at {place}: {message}"
    if not any(frame.filename.startswith(PACKAGE) for frame in frames):
        return Verdict.UNTYPED, f"a fault of the campaign itself: {text}"
    if isinstance(error, of.errors.OtflowError):
        return Verdict.REFUSED, text
    # What otflow raises itself, of a promised kind and with a message.
    own = last.filename.startswith(PACKAGE) and len(message) > 10
    leaked = any(part in message.lower() for part in FOREIGN)
    good = isinstance(error, TYPED) and own and not leaked
    return Verdict.REFUSED if good else Verdict.UNTYPED, text
