"""What is saved is loaded to the bit, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import otflow as of
from otflow.errors import CorruptFile, Unsupported
from otflow.testing import assert_same
from tests.marks import slow
from tests.test_resume import CASES, Momentum, cloud, flown, gaussian, grid, quantiles

safetensors = pytest.importorskip("safetensors.torch")
F64 = torch.float64
TYPES = {"user": [Momentum]}


def obstacles():
    rho = torch.ones(5, 6, dtype=F64)
    blocked = torch.zeros(5, 6, dtype=torch.bool)
    blocked[2, 1:4] = True
    rho = rho.masked_fill(blocked, 0.0)
    return of.GridDensity(rho, 0.0, 1.0, obstacles=blocked, normalize=True)


MEASURES = {
    "cloud": cloud,
    "weighted": lambda: of.Particles(torch.rand(3, 2), torch.tensor([0.5, 0.25, 0.25])),
    "grid": grid,
    "plane": lambda: grid(2, 6),
    "obstacles": obstacles,
    "quantiles": quantiles,
    "graded": lambda: of.Quantiles.from_quantile(torch.special.ndtri, 30, grading=2.0),
    "gaussian": gaussian,
    "float32": lambda: of.Particles(torch.rand(3, 2)),
}


def there_and_back(thing, folder, **options):
    of.save(folder / "thing.safetensors", thing)
    return of.load(folder / "thing.safetensors", **options)


# Cases of several seconds.
LONG = ("back and forth W", "sliding", "grid sinkhorn", "plane back")


@pytest.mark.parametrize("kind", MEASURES)
def test_measures_come_back_to_the_bit(kind, tmp_path):
    mu = MEASURES[kind]()
    again = there_and_back(mu, tmp_path)
    assert_same(again, mu)
    F = of.Potential(lambda x: x.square().sum(-1)) + of.Interaction(
        of.kernels.Gaussian(1.0)
    )
    assert_same(F.value(again), F.value(mu))


@pytest.mark.parametrize(
    "case",
    [*(case for case in CASES if case not in LONG), *slow(*LONG)],
)
def test_runs_come_back_to_the_bit_and_go_on(case, tmp_path):
    run = flown(case, 3, generator=7, every=2)
    again = there_and_back(run, tmp_path, types=TYPES.get(case, ()))
    assert_same(again, run)
    whole = flown(case, 5, generator=7, every=2)
    assert_same(flown(case, 2, every=2, resume=again), whole, but={"message"})


@pytest.mark.parametrize(
    "thing",
    [
        None,
        True,
        -(2**70),
        0.1,
        float("nan"),
        float("-inf"),
        "$ text",
        [1, [2.0, "x"]],
        (1, (), {"a": 1, 2: "b"}),
        {"$": "tensor", "is": 3},
        torch.tensor(3.0),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3).T,
        torch.ones(1, 3).expand(4, 3),
        torch.tensor([True, False]),
        torch.rand(4, 4, dtype=F64)[1:3, ::2],
        np.arange(5.0)[::-1],
        np.float32(1.5),
        np.int64(-3),
        torch.float32,
        torch.device("cpu"),
        of.proximal.Guarantee.EXACT,
        of.proximal.Certificate(1.0, 0.5, dt=0.1, entries={"mine": [1, 2]}),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_data_comes_back_to_the_bit(thing, tmp_path):
    assert_same(there_and_back(thing, tmp_path), thing)


def test_the_order_of_axes_in_memory_comes_back(tmp_path):
    x = torch.rand(5, 3, 4).permute(2, 0, 1)
    again = there_and_back(x, tmp_path)
    assert again.stride() == x.stride()
    assert torch.equal(again, x)


def test_what_is_shared_is_written_once_and_stays_shared(tmp_path):
    x = torch.rand(10_000, dtype=F64)
    again = there_and_back([x, x, {"same": x}], tmp_path)
    assert again[0] is again[1] is again[2]["same"]
    assert (tmp_path / "thing.safetensors").stat().st_size < 1.2 * 80_000
    run = flown("euler", 6)  # all snapshots share the weights
    again = there_and_back(run, tmp_path)
    for r in (run, again):
        assert len({mu.weights.data_ptr() for mu in r.snapshots}) <= 2


def test_a_measure_of_one_s_own_needs_its_class(tmp_path):
    @dataclass(frozen=True, eq=False, init=False, repr=False)
    class Labelled(of.Particles):
        def __init__(self, points):
            super().__init__(points)

    mu = Labelled(torch.rand(3, 2))
    of.save(tmp_path / "mu.safetensors", mu)
    with pytest.raises(Unsupported, match=r"types=\[.*Labelled\]"):
        of.load(tmp_path / "mu.safetensors")
    again = of.load(tmp_path / "mu.safetensors", types=[Labelled])  # the cure
    assert_same(again, mu)


# ---- what no file holds --------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda x: x, "function, which no file holds"),
        ([1, {"f": print}], r"list\[1\]\['f'\] is of class builtin_function"),
        (object(), "object, which no file holds"),
        (np.array(["a"]), "array of <U1"),
        (torch.ones(2, requires_grad=True), r"mu\.detach\(\)"),
        (torch.ones(2).to_sparse(), r"to_dense\(\)"),
        (torch.ones(2, dtype=torch.complex64), "view_as_real"),
        (of.Particles(torch.ones(2, 1, requires_grad=True)), r"mu\.detach\(\)"),
    ],
    ids=["lambda", "builtin", "object", "text", "graph", "sparse", "complex", "mu"],
)
def test_what_is_no_data_raises_and_writes_nothing(thing, words, tmp_path):
    with pytest.raises(Unsupported, match=words):
        of.save(tmp_path / "no.safetensors", thing)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"otflow\[store\]"):
        of.save(tmp_path / "mu.safetensors", cloud())
    assert list(tmp_path.iterdir()) == []


# ---- damage --------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "run.safetensors"
    of.save(path, flown("JKO", 2))
    return path


def test_every_flipped_or_missing_byte_raises(kept):
    data = kept.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(data), (120,), generator=generator).tolist()
    for at in [0, 7, 8, len(data) - 1, *places]:
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        kept.write_bytes(bytes(changed))
        with pytest.raises(CorruptFile):
            of.load(kept)
    for length in [0, 4, 8, 100, len(data) // 2, len(data) - 1]:
        kept.write_bytes(data[:length])
        with pytest.raises(CorruptFile):
            of.load(kept)
    kept.write_bytes(data)
    of.load(kept)


def changed(path, change):
    """Write the file again with its tree changed, and a checksum that fits."""
    from otflow.storage import files

    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.load(data)
    tree = json.loads(head["tree"])
    change(tree, head, tensors)
    head["tree"] = json.dumps(tree)
    head["checksum"] = files.checksum_of(head["tree"], tensors)
    path.write_bytes(safetensors.save(tensors, metadata=head))


def unchanged(tree, head, tensors):
    pass


def unknown_field(tree, head, tensors):
    tree["is"]["extra"] = 1


def missing_field(tree, head, tensors):
    del tree["is"]["final"]


def unknown_tag(tree, head, tensors):
    tree["is"]["seed"] = {"$": "code", "is": "print()"}


def other_class(tree, head, tensors):
    tree.update({"class": "Popen", "module": "subprocess"})


def a_function(tree, head, tensors):
    tree.update({"class": "flow", "module": "otflow.flow"})


def borrowed_class(tree, head, tensors):
    tree.update({"class": "Path", "module": "otflow.storage.files"})


def a_scheme(tree, head, tensors):
    tree.update({"class": "JKO", "module": "otflow.schemes.jko"})


def no_tensor(tree, head, tensors):
    tensors.clear()


def negative(tree, head, tensors):
    for key, x in tensors.items():
        if x.is_floating_point():
            tensors[key] = -x


def version_two(tree, head, tensors):
    head["version"] = "2"


def not_ours(tree, head, tensors):
    del head["format"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (unknown_field, CorruptFile, "unknown fields"),
        (missing_field, CorruptFile, "no \\['final'\\]"),
        (unknown_tag, CorruptFile, "unknown kind"),
        (other_class, Unsupported, "load makes no class"),
        (a_function, CorruptFile, "does not have"),
        (borrowed_class, CorruptFile, "does not have"),
        (a_scheme, CorruptFile, "holds no data"),
        (no_tensor, CorruptFile, "fits no tensor"),
        (negative, CorruptFile, "negative"),
        (version_two, CorruptFile, "the otflow that wrote it"),
        (not_ours, CorruptFile, "read it with safetensors"),
    ],
)
def test_a_tampered_file_raises(kept, change, error, words):
    changed(kept, unchanged)
    of.load(kept)  # a file that is written again without a change is good
    changed(kept, change)
    with pytest.raises(error, match=words):
        of.load(kept)


def test_pickles_and_other_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    path = tmp_path / "evil"
    for data in (pickle.dumps(Evil()), b"", b"text", safetensors.save({})):
        path.write_bytes(data)
        with pytest.raises(CorruptFile):
            of.load(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(CorruptFile):
        of.load(path)
    assert not (tmp_path / "owned").exists()


def test_errors_of_the_system_pass(tmp_path):
    with pytest.raises(FileNotFoundError):
        of.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        of.save(tmp_path / "none" / "mu", cloud())
    with pytest.raises(TypeError, match="types"):
        of.load(tmp_path / "none", types=["Particles"])  # type: ignore[list-item]


def test_a_full_disk_leaves_the_old_file_and_no_other(kept, monkeypatch):
    before = kept.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        of.save(kept, cloud())
    assert caught.value.errno == 28
    assert kept.read_bytes() == before
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_device_that_is_not_here_is_named(kept):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")

    def on_cuda(tree, head, tensors):
        text = json.dumps(tree).replace('"device": "cpu"', '"device": "cuda:0"')
        tree.clear()
        tree.update(json.loads(text))

    changed(kept, on_cuda)
    with pytest.raises(Unsupported, match=r'device="cpu"'):
        of.load(kept)
    assert of.load(kept, device="cpu").final.device.type == "cpu"  # the cure


# ---- pickles -------------------------------------------------------------------------


BUILT_IN = {
    "potential": lambda: of.KL(torch.square),
    "sum": lambda: 2 * of.Entropy() + of.PowerEntropy(2.0) + of.Congestion(9.0),
    "interaction": lambda: of.Interaction(of.kernels.Log()),
    "risk": lambda: of.meanfield.Risk(
        of.meanfield.TwoLayer("tanh"), torch.ones(4, 1), torch.ones(4)
    ),
}


@pytest.mark.parametrize("kind", MEASURES)
def test_measures_pickle(kind):
    mu = MEASURES[kind]()
    assert_same(pickle.loads(pickle.dumps(mu)), mu)


@pytest.mark.parametrize("case", CASES)
def test_runs_pickle(case):
    run = flown(case, 2)
    assert_same(pickle.loads(pickle.dumps(run)), run)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_functionals_pickle(name):
    F = BUILT_IN[name]()
    mu = of.Particles(torch.rand(5, 3)) if name == "risk" else grid()
    if name != "potential":
        assert_same(pickle.loads(pickle.dumps(F)).value(mu), F.value(mu))


@pytest.mark.slow
def test_a_process_started_by_spawn_takes_measures_and_returns_runs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, torch, otflow as of\n"
        "def flown(task):\n"
        "    mu, F = task\n"
        "    return of.flow(F, mu, of.JKO(), dt=0.1, steps=2, generator=0)\n"
        "if __name__ == '__main__':\n"
        "    F = of.Interaction(of.kernels.Quadratic())\n"
        "    starts = [of.Particles(torch.rand(4, 2)) for _ in range(2)]\n"
        "    tasks = [(mu, F) for mu in starts]\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        runs = pool.map(flown, tasks)\n"
        "    for run, task in zip(runs, tasks):\n"
        "        assert torch.equal(run.final.points, flown(task).final.points)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=200)


@pytest.mark.parametrize("kind", MEASURES)
def test_torch_loads_measures_by_its_default(kind, tmp_path):
    path = Path(tmp_path, "mu.pt")
    mu = MEASURES[kind]()
    torch.save({"mu": mu, "epoch": 3}, path)
    assert_same(torch.load(path)["mu"], mu)


@pytest.mark.parametrize("case", sorted(CASES.keys() - TYPES.keys()))
def test_torch_loads_runs_by_its_default(case, tmp_path):
    run = flown(case, 2)
    torch.save(run, Path(tmp_path, "run.pt"))
    assert_same(torch.load(Path(tmp_path, "run.pt")), run)
