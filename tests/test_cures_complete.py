"""Every message of the library that names a cure is provoked by a case of the cures.

The cases are run here again as far as their errors, in one process: the errors, not a
list of them, say which messages were shown.
"""

from __future__ import annotations

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from tests.messages import messages, names_a_cure

FLOORS = (
    "alignment",
    "assignments",
    "births",
    "blobs",
    "cells",
    "certificates",
    "convexities",
    "convexity",
    "distances",
    "domains",
    "dynamics",
    "entries",
    "estimators",
    "exact_plans",
    "first_hours",
    "first_week",
    "free_masses",
    "gaps",
    "generalisation",
    "maps",
    "mean_fields",
    "means",
    "mobilities",
    "models",
    "moves",
    "multilayer",
    "networks_and_heat",
    "noise",
    "norms",
    "numbers",
    "optimizers",
    "parts",
    "plans",
    "reports",
    "residual",
    "runs",
    "sparse_measures",
    "steps",
    "subclasses",
    "targets",
    "time_errors",
    "walls",
    "watching",
    "words",
)
MODULES = ("tests.test_cures", *(f"tests.test_cures_of_{name}" for name in FLOORS))
DEVICE = "it takes a second device"
ADVICE = "a line of run.summary(), in tests/test_views.py"
REASON = "a line of F.why(), in tests/functionals/test_why.py"
REPORT = "a line of a report on a run, in tests/analysis/test_certify*.py"
GAP = "a reason of a gap, in tests/optimality and tests/meanfield"
EPOCHS = "a warning, in tests/estimators"
GUARD = "no input is known that leads there: an earlier check or a safeguard holds"
# Beginnings of the last clauses of messages that no case provokes, and why.
LEFT = {
    "raise max_iter, or tol": EPOCHS,
    "raise max_iter, or lower n_iter_no_change": EPOCHS,
    "pip install 'otflow[": "an installation is no test",
    "a film needs ffmpeg, which is not to be found": "tests/test_plotting.py hides it",
    "call to_jshtml()": "tests/test_plotting.py hides ffmpeg",
    "take a smaller dt, or ExplicitEuler(backtracking=True)": ADVICE,
    "where you know it": REASON,
    "give kernels.": REASON,
    "convexity is known for balanced transport": REASON,
    "the outputs depend on the number of atoms: take": REASON,
    "at both ends of": REPORT,
    "keep snapshots": REPORT,
    "that is normal for plain Frank-Wolfe": REPORT,
    "values at mixtures of the end with": REPORT,
    "steps are rare, take every=1": REPORT,
    "take a smaller dt, or F has a kink": REPORT,
    "has no first variation, of which a gap is made": REPORT,
    "take optimality.entropic_gap(F, rho) at rho": REPORT,
    "try one by evolution_variational_inequality": REPORT,
    "analysis.falsify tells both apart": REASON,
    "take meanfield.VariationBall or PathBall as the domain": GAP,
    "take a box without this place": GAP,
    "state mixture_curvature in a subclass of Risk": REASON,
    "more of them, max_cells, make the bound sharper": GAP,
    "rescale the data": GAP,
    "take a smaller box, or a larger": GAP,
    "move one with .to('": DEVICE,
    "move one with .to(...)": DEVICE,
    "use mu.to('cpu')": DEVICE,
    "use torch.Generator(device=": DEVICE,
    "build its tensors on the measure's device": DEVICE,
    "take a larger blur than": GUARD,
    "leave out data that nearly coincide, or take fewer": GUARD,
    "leave these atoms out (points[weights > 0]), or take a larger blur": GUARD,
    "raise the bound to": GUARD,
    "the dual of the JKO step left": GUARD,
    "the flow of the step left": GUARD,
    "the scaling iteration left": GUARD,
    "the energy of quantiles is not finite": GUARD,
}


def shown():
    """Return the messages that the errors of all cases hold."""
    found, known = set(), messages()
    for name in MODULES:
        for kind, _, wrong, _ in importlib.import_module(name).CASES.values():
            torch.manual_seed(0)
            with pytest.raises(kind) as caught:
                wrong()
            plt.close("all")
            found |= {m for m in known if m.is_in(caught.value)}
    return found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.slow  # some 250 calls, and the first of every solver
def test_every_message_that_names_a_cure_is_provoked():
    seen = shown()
    left = [m for m in messages() if m not in seen]
    excused = {m: words for m in left for words in LEFT if words in m.text}
    missing = [f"{m.file}:{m.line}: {m.text}" for m in left if m not in excused]
    assert not missing, "\n".join(missing)
    assert set(excused.values()) == set(LEFT), "an excuse is no longer needed"


@pytest.mark.parametrize(
    "text",
    [
        "dt is too long; take a smaller dt",
        "x has 3 rows; reduce over the last axis, e.g. .sum(-1)",
        "y must be a function; e.g. lambda x: x",
        "use JKO()",
        "the kernel is singular: add a term, or use Particles",
        "an image of five axes; in higher dimension use Particles",
    ],
)
def test_a_cure_is_read(text):
    assert names_a_cure(text)


@pytest.mark.parametrize(
    "text",
    ["dt must be positive", "stop must be a function, got 3", "one; a measure of two"],
)
def test_what_names_no_cure_is_not_read_as_one(text):
    assert not names_a_cure(text)


def test_messages_are_found_in_all_packages():
    """A reader that saw none would pass."""
    found = messages()
    assert len(found) > 180
    assert {m.file.split("/")[0] for m in found} >= {
        "analysis",
        "functionals",
        "meanfield",
        "measures",
        "metrics",
        "plotting",
        "proximal",
        "schemes",
    }
