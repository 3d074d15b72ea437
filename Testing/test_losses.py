"""Losses against direct numpy references, their gradients, and the images that break formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from scipy.special import digamma, gammaln  # noqa: E402

from RegMambaLib import losses  # noqa: E402
from RegMambaLib.errors import InputError  # noqa: E402

SMALL_SHAPES = [(1, 1, 1), (1, 5, 6), (2, 3, 1), (3, 3, 3)]


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def windows(shape: tuple[int, ...], radius: int):
    for place in np.ndindex(*shape):
        yield place, tuple(slice(max(0, p - radius), p + radius + 1) for p in place)


def test_box_mean_is_the_mean_of_the_part_inside_the_image():
    x = image(1, 1, 4, 5, 3)
    got = losses.box_mean(x, 1)[0, 0].numpy()
    for place, cube in windows((4, 5, 3), 1):
        assert got[place] == pytest.approx(x[0, 0].numpy()[cube].mean())


def reference_lncc(f: np.ndarray, m: np.ndarray, w: np.ndarray, window: int, flat: float) -> np.ndarray:
    def standardised(x):
        x = x - np.average(x, weights=w)
        return x / np.sqrt(np.average(x**2, weights=w))

    f, m = standardised(f), standardised(m)
    out = np.zeros_like(f)
    for place, cube in windows(f.shape, window // 2):
        share = w[cube].ravel()
        cov = np.cov(np.stack([f[cube].ravel(), m[cube].ravel()]), aweights=share, ddof=0)
        out[place] = cov[0, 1] ** 2 / ((cov[0, 0] + flat) * (cov[1, 1] + flat))
    return out


@pytest.mark.parametrize("window", [3, 5])
def test_lncc_equals_the_window_by_window_correlation(window):
    f, m, w = image(1, 1, 6, 5, 7), image(1, 1, 6, 5, 7, seed=1), image(1, 1, 6, 5, 7, seed=2) + 0.1
    got = losses.lncc_map(f, m, window=window, flat=1e-2, weights=w)[0, 0].numpy()
    expected = reference_lncc(*(x[0, 0].numpy() for x in (f, m, w)), window, 1e-2)
    np.testing.assert_allclose(got, expected, rtol=1e-8)
    loss = losses.lncc_loss(f, m, window=window, flat=1e-2, weights=w)
    assert float(loss) == pytest.approx(1 - np.average(expected, weights=w[0, 0].numpy()))


def test_lncc_does_not_see_gain_offset_or_inversion_but_sees_shift():
    f = image(2, 1, 12, 12, 12).float()
    assert losses.lncc_loss(f, 100 - 7 * f) < 0.02
    assert losses.lncc_loss(f, f.roll(1, dims=2)) > 0.5
    np.testing.assert_allclose(losses.lncc_loss(f, f * 1e12 + 1e11), losses.lncc_loss(f, f), atol=1e-4)


def test_lncc_ignores_what_lies_outside_the_weights():
    f = image(1, 1, 8, 8, 8)
    m = f.clone()
    m[..., 4:] = image(1, 1, 8, 8, 4, seed=3) * 50
    w = torch.zeros_like(f)
    w[..., :4] = 1
    assert losses.lncc_loss(f, m, weights=w) < 0.02 < losses.lncc_loss(f, m)
    assert torch.isfinite(losses.lncc_loss(f, m, weights=torch.zeros_like(w)))


@pytest.mark.parametrize("value", [0.0, 1.0, 3e4, 1e15])
def test_lncc_of_a_constant_image_is_one_with_a_finite_gradient(value):
    f = image(1, 1, 7, 7, 7).float()
    m = torch.full_like(f, value).requires_grad_()
    loss = losses.lncc_loss(f, m)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1)
    assert torch.isfinite(m.grad).all()


def test_mse_equals_numpy_with_and_without_weights():
    a, b, w = image(1, 2, 3, 4, 5), image(1, 2, 3, 4, 5, seed=1), image(1, 1, 3, 4, 5, seed=2)
    assert float(losses.mse_loss(a, b)) == pytest.approx(((a - b).numpy() ** 2).mean())
    expected = np.average((a - b).numpy() ** 2, weights=np.broadcast_to(w.numpy(), a.shape))
    assert float(losses.mse_loss(a, b, weights=w)) == pytest.approx(expected)


def reference_mind(x: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    faces = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    pairs = [(a, b) for i, a in enumerate(faces) for b in faces[i + 1 :] if np.dot(a, b) == 0]
    limit = np.array(x.shape) - 1

    def at(place, face):
        return x[tuple(np.clip(np.array(place) + dilation * np.array(face), 0, limit))]

    squares = np.zeros((len(pairs), *x.shape))
    for k, (a, b) in enumerate(pairs):
        for place in np.ndindex(*x.shape):
            squares[k][place] = (at(place, a) - at(place, b)) ** 2
    patch = np.stack([[s[cube].mean() for _, cube in windows(x.shape, radius)] for s in squares])
    patch = patch.reshape(squares.shape)
    patch -= patch.min(axis=0)
    spread = patch.mean(axis=0)
    return np.exp(-patch / np.clip(spread, spread.mean() * 1e-3, spread.mean() * 1e3))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1), (2, 1)])
def test_mind_equals_the_patch_by_patch_reference(radius, dilation):
    x = image(1, 1, 6, 5, 7)
    got = losses.mind_ssc(x, radius, dilation)[0].numpy()
    np.testing.assert_allclose(got, reference_mind(x[0, 0].numpy(), radius, dilation), rtol=1e-8)


def test_mind_does_not_depend_on_gain_offset_or_inversion():
    x = image(1, 1, 9, 9, 9)
    for other in (x * 1e18, 5 - 3 * x):
        torch.testing.assert_close(losses.mind_ssc(other), losses.mind_ssc(x))
    assert (losses.mind_ssc(torch.full((1, 1, 4, 4, 4), 7.0)) == 1).all()


def test_dice_counts_present_labels_only_and_is_zero_for_equal_maps():
    labels = torch.randint(0, 3, (1, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    onehot = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).double()
    assert float(losses.dice_loss(onehot, onehot)) == pytest.approx(0, abs=1e-12)
    other = onehot.roll(1, dims=2)
    a, b = onehot.numpy(), other.numpy()
    overlap = [2 * (a[0, k] * b[0, k]).sum() / (a[0, k].sum() + b[0, k].sum()) for k in range(3)]
    assert float(losses.dice_loss(onehot, other, smooth=0)) == pytest.approx(1 - np.mean(overlap))
    assert losses.dice_loss(onehot * 0, other * 0) == 0


def test_diffusion_and_bending_of_known_fields():
    h, w, d = (c.double() for c in torch.meshgrid(*map(torch.arange, (5, 6, 7)), indexing="ij"))
    linear = torch.stack([2 * h, 3 * w + h, d * 0])[None]
    # forward differences: axis h 2, 1, 0; axis w 0, 3, 0; axis d none
    assert float(losses.diffusion_loss(linear)) == pytest.approx((4 + 1 + 9) / 9)
    assert float(losses.bending_loss(linear)) == pytest.approx(0)
    curved = torch.stack([h**2, w * d, h * 0])[None]
    assert float(losses.bending_loss(curved)) == pytest.approx((2**2 + 2 * 1) / 3)


def test_dirichlet_divergence_equals_the_formula_and_is_zero_at_the_prior():
    x = image(2, 3, 2, 2, 2) * 4 - 2
    a = np.exp(x.numpy())
    s = a.sum(axis=1)
    k, prior = 3, 0.7
    expected = gammaln(s) - gammaln(a).sum(axis=1) - gammaln(k * prior) + k * gammaln(prior)
    expected += ((a - prior) * (digamma(a) - digamma(s)[:, None])).sum(axis=1)
    assert float(losses.dirichlet_kl_loss(x, prior=prior)) == pytest.approx(expected.mean())
    even = torch.full((1, 4, 2, 2, 2), math.log(prior), dtype=torch.float64)
    assert float(losses.dirichlet_kl_loss(even, prior=prior)) == pytest.approx(0, abs=1e-12)
    extreme = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = losses.dirichlet_kl_loss(extreme)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(extreme.grad).all() and loss > 0


def reference_nmi(f: np.ndarray, m: np.ndarray, bins: int) -> float:
    def spline(x):
        x = abs(x)
        return 2 / 3 - x**2 + x**3 / 2 if x < 1 else max(0.0, 2 - x) ** 3 / 6

    def windows_of(image):
        place = 1 + (bins - 3) * (image.ravel() - image.min()) / np.ptp(image)
        return np.array([[spline(p - b) for b in range(bins)] for p in place])

    wf, wm = windows_of(f), windows_of(m)
    np.testing.assert_allclose(wf.sum(axis=1), 1)
    joint = sum(np.outer(a, b) for a, b in zip(wf, wm, strict=True)) / f.size

    def entropy(p):
        return -sum(v * math.log(v) for v in p.ravel() if v > 0)

    return 2 - (entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))) / entropy(joint)


def test_nmi_equals_the_voxel_by_voxel_histogram(monkeypatch):
    f, m = image(2, 1, 5, 4, 6), image(2, 1, 5, 4, 6, seed=1) * 300 - 40
    expected = np.mean([reference_nmi(f[k, 0].numpy(), m[k, 0].numpy(), 12) for k in range(2)])
    assert float(losses.nmi_loss(f, m, bins=12)) == pytest.approx(expected)
    # However the voxels are cut into pieces.
    monkeypatch.setattr("RegMambaLib.losses.nmi._CHUNK", 37)
    assert float(losses.nmi_loss(f, m, bins=12)) == pytest.approx(expected)


def test_nmi_sees_any_relation_of_intensities_and_shift():
    f = torch.nn.functional.avg_pool3d(image(1, 1, 26, 26, 26), 3, 2)
    related = (f - 0.5) ** 2 * 1e6
    same, mapped = losses.nmi_loss(f, f), losses.nmi_loss(f, related)
    assert same < mapped < losses.nmi_loss(f, related.roll(2, dims=2)) - 0.02 < 1
    assert float(losses.nmi_loss(f, f * 1e9)) == pytest.approx(float(same))
    assert float(losses.nmi_loss(f, torch.full_like(f, 7))) == pytest.approx(1)


def test_inverse_consistency_is_zero_for_a_shift_and_back_and_the_gradient_of_the_round_trip():
    shift = torch.ones(1, 3, 6, 6, 6, dtype=torch.float64)
    assert float(losses.inverse_consistency_loss(shift, -shift)) == pytest.approx(0, abs=1e-12)
    h, w, d = (c.double() for c in torch.meshgrid(*map(torch.arange, (6, 6, 6)), indexing="ij"))
    there = torch.stack([0.1 * h, 0 * w, 0 * d])[None]
    back = torch.stack([0 * h, 0 * w, 0.2 * h])[None]
    inside = slice(0, 5)  # the last voxels leave the grid, where the edge value holds
    # x + there, then back at that place: (1.1 h, w, d + 0.2 * 1.1 h); its gradient less the identity is constant.
    got = losses.inverse_consistency_loss(there[:, :, inside], back[:, :, inside])
    trip = np.stack([0.1 * h.numpy(), 0 * h.numpy(), 0.2 * np.minimum(1.1 * h.numpy(), 4)])[:, :5]
    expected = sum((np.diff(trip, axis=axis + 1) ** 2).mean() * 3 for axis in range(3))
    assert float(got) == pytest.approx(expected)


def test_pac_bayes_bound_solves_its_equation():
    def kl(q, b):
        return q * math.log(q / b) + (1 - q) * math.log((1 - q) / (1 - b))

    for risk, divergence, examples, delta in (
        (0.3, 0.0, 1000, 0.05),
        (0.6, 2.5, 50, 0.01),
        (0.01, 10.0, 400, 0.1),
    ):
        b = float(
            losses.pac_bayes_bound(
                torch.tensor(risk, dtype=torch.float64), torch.tensor(divergence), examples, delta=delta
            )
        )
        reach = (divergence + math.log(2 * math.sqrt(examples) / delta)) / examples
        assert b > risk and kl(risk, b) == pytest.approx(reach, rel=1e-9)
    few, many = (float(losses.pac_bayes_bound(torch.tensor(0.3), torch.tensor(1.0), n)) for n in (10, 10**9))
    assert many == pytest.approx(0.3, abs=1e-3) and many < few < 1
    assert math.isnan(losses.pac_bayes_bound(torch.tensor(math.nan), torch.tensor(1.0), 10))
    hopeless = torch.tensor(1e9, requires_grad=True)
    bound = losses.pac_bayes_bound(torch.tensor(0.3), hopeless, 10)
    bound.backward()
    assert float(bound.detach()) == pytest.approx(1) and torch.isfinite(hopeless.grad)


def test_pac_bayes_gradient_is_the_derivative():
    point = tuple(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 1.2))
    assert torch.autograd.gradcheck(lambda risk, kl: losses.pac_bayes_bound(risk, kl, 40), point)


LOSSES = {
    "box": lambda x: losses.box_mean(x, 1).square().mean(),
    "mse": lambda x: losses.mse_loss(x, image(*x.shape, seed=5)),
    "mind": lambda x: losses.mind_ssc(x[:, :1]).square().mean(),
    "dice": lambda x: losses.dice_loss(x, image(*x.shape, seed=5)),
    "diffusion": lambda x: losses.diffusion_loss(x.expand(-1, 3, -1, -1, -1)),
    "bending": lambda x: losses.bending_loss(x.expand(-1, 3, -1, -1, -1)),
    "nmi": lambda x: losses.nmi_loss(image(*x.shape, seed=5), x, bins=8),
    "inverse": lambda x: losses.inverse_consistency_loss(
        image(1, 3, *x.shape[2:], seed=5) - 0.5, x.expand(-1, 3, -1, -1, -1)
    ),
    "dirichlet": lambda x: losses.dirichlet_kl_loss(torch.cat([x, 2 * x, -x], dim=1)),
}


@pytest.mark.parametrize("name", ["box", "mse", "dice", "diffusion", "bending", "inverse", "dirichlet"])
def test_gradient_is_the_derivative(name):
    x = image(1, 1, 4, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (x,))


def test_nmi_gradient_is_the_derivative_where_the_range_stays():
    x = image(1, 1, 4, 3, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES["nmi"](x), x)
    for place in ((0, 0, 1, 1, 2), (0, 0, 3, 2, 0)):
        assert x.min() < x[place] < x.max()
        step = torch.zeros_like(x)
        step[place] = 1e-6
        slope = (LOSSES["nmi"](x + step) - LOSSES["nmi"](x - step)) / 2e-6
        assert float(slope.detach()) == pytest.approx(float(gradient[place]), rel=1e-4)


def test_lncc_gradient_is_the_derivative():
    f, m = image(1, 1, 5, 4, 6), image(1, 1, 5, 4, 6, seed=1).requires_grad_()
    # With flat = 0 the correlation is invariant to the gain, so the constant statistics do not show.
    assert torch.autograd.gradcheck(lambda x: losses.lncc_loss(f, x, window=3, flat=0.0), (m,))


@pytest.mark.parametrize("shape", SMALL_SHAPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e15])
def test_tiny_constant_and_huge_images_give_finite_losses_and_gradients(shape, scale):
    x = (image(1, 1, *shape).float() * scale).requires_grad_()
    y = image(1, 1, *shape, seed=1).float() * scale
    values = [
        losses.lncc_loss(y, x),
        losses.mse_loss(losses.mind_ssc(y), losses.mind_ssc(x)),
        losses.mse_loss(y, x),
        losses.nmi_loss(y, x),
        losses.inverse_consistency_loss(y.expand(-1, 3, -1, -1, -1), x.expand(-1, 3, -1, -1, -1)),
        losses.diffusion_loss(x.expand(-1, 3, -1, -1, -1)),
        losses.bending_loss(x.expand(-1, 3, -1, -1, -1)),
        losses.dirichlet_kl_loss(torch.cat([x, -x], dim=1)),
    ]
    for value in values:
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_wrong_settings_say_what_to_choose():
    x = torch.zeros(1, 1, 4, 4, 4)
    for call in (
        lambda: losses.lncc_loss(x, x, window=4),
        lambda: losses.lncc_loss(x, x[..., :2]),
        lambda: losses.mse_loss(x, x[..., :2]),
        lambda: losses.mind_ssc(x.expand(-1, 2, -1, -1, -1)),
        lambda: losses.mind_ssc(x, dilation=0),
        lambda: losses.nmi_loss(x, x, bins=4),
        lambda: losses.nmi_loss(x, x[..., :2]),
        lambda: losses.inverse_consistency_loss(x, x),
        lambda: losses.pac_bayes_bound(torch.tensor(1.5), torch.tensor(0.0), 10),
        lambda: losses.pac_bayes_bound(torch.tensor(0.5), torch.tensor(0.0), 0),
        lambda: losses.dice_loss(x, x[..., :2]),
        lambda: losses.diffusion_loss(x),
        lambda: losses.dirichlet_kl_loss(x),
        lambda: losses.dirichlet_kl_loss(x.expand(-1, 2, -1, -1, -1), prior=0),
    ):
        with pytest.raises(InputError):
            call()
