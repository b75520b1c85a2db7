"""The particles spell words, and flow as the Sinkhorn divergence makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import otflow as of
from demo import words

ROOT = Path(__file__).parent.parent.parent
STAGES = ((0.3, 3), (0.1, 4))


@pytest.fixture(scope="module")
def found() -> words.Words:
    return words.flow_words(80, STAGES)


def frames(gif: bytes) -> list[float]:
    """Return the seconds of each frame of a GIF, by its control blocks."""
    parts = gif.split(b"\x21\xf9\x04")[1:]
    return [int.from_bytes(part[1:3], "little") / 100 for part in parts]


@pytest.mark.parametrize("word", [words.FIRST, words.SECOND])
def test_points_are_distinct_and_centred(word):
    x = words.spelled(word, 100).points
    assert x.shape == (100, 2)
    torch.testing.assert_close(x.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)
    assert torch.pdist(x).min() > 0.03


def test_a_ring_has_a_hole():
    x = words.spelled("o", 120).points
    middle = 0.5 * (x.amin(0) + x.amax(0))
    assert (x - middle).norm(dim=1).min() > 0.05


def test_more_particles_than_pixels_raise():
    with pytest.raises(ValueError, match="fewer than 9000"):
        words.spelled("i", 9000)


def test_the_way_left_falls_from_all_to_little():
    shares = [words.left(k, 10) for k in range(11)]
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(words.LEFT, rel=1e-9)
    assert shares == sorted(shares, reverse=True)


def test_the_divergence_falls_in_each_step(found):
    assert found.rises == 0
    assert found.row.certificate == "none; energy rose in 0 of 7 steps"


def test_the_mean_moves_along_its_exact_path(found):
    # dt (target - m) in each step, whatever the blur: the debiased part has no mean.
    assert found.mean_error < 1e-12


def test_the_particles_come_near_the_second_word(found):
    assert found.distance(-1) < 0.5 * found.distance(0)


def test_a_functional_of_its_value_alone_has_the_gradient_of_the_divergence():
    target, mu = (words.spelled(word, 30) for word in (words.SECOND, words.FIRST))
    F = words.Towards(target, 0.2)
    x = mu.points.clone().requires_grad_()
    value = of.metrics.sinkhorn_divergence(x, target.points, blur=0.2)
    (slope,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(F.velocity(mu), -30 * slope)


def test_the_film_shows_each_step(found, tmp_path):
    path = tmp_path / "words.gif"
    words.draw(found, path)
    shown = frames(path.read_bytes())
    moving = sum(steps for _, steps in STAGES) + 1
    # Equal frames are stored once, with their common duration.
    assert moving <= len(shown) <= moving + words.HELD + words.KEPT
    total = (moving + words.HELD + words.KEPT) / words.FRAMES_A_SECOND
    assert sum(shown) == pytest.approx(total, rel=0.1)


def test_the_film_of_the_readme_is_small_and_whole():
    film = (ROOT / "docs/_static/demo/words.gif").read_bytes()
    assert film[:6] == b"GIF89a"
    assert len(film) <= 1_500_000
    steps = sum(steps for _, steps in words.STAGES)
    total = (words.HELD + steps + 1 + words.KEPT) / words.FRAMES_A_SECOND
    assert sum(frames(film)) == pytest.approx(total, rel=0.1)
    width = int.from_bytes(film[6:8], "little")
    assert width == words.WIDTH
