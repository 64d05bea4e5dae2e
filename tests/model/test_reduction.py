"""PCA and whitening against numpy, and the choice between them on made-up collections."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.errors import ModelError
from model.reduction import MIN_PHOTOS, POWERS, Choice, Reduction, choose_reduction, fit_reduction

Floats = NDArray[np.float32]
Views = tuple[Floats, Floats, Floats]


def unit(x: NDArray[np.floating]) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def some_descriptors(n: int, channels: int, seed: int = 0) -> Floats:
    """Directions of well separated variances, away from the origin."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    values = rng.normal(size=(n, channels)) * 0.9 ** np.arange(channels) + 2
    return np.asarray(values @ turn, np.float32)


def numpy_reduction(fit: Floats, dim: int, power: float, new: Floats) -> NDArray[np.float64]:
    mean = fit.astype(np.float64).mean(0)
    _, singular, directions = np.linalg.svd(fit - mean, full_matrices=False)
    variances = singular**2 / (len(fit) - 1)
    projection = directions[:dim] * ((variances[:dim] + 1e-9) ** (-power / 2))[:, None]
    reduced = (new - mean) @ projection.T
    return np.asarray(reduced / np.linalg.norm(reduced, axis=1, keepdims=True))


def apply(reduction: Reduction, descriptors: Floats) -> NDArray[np.float64]:
    return reduction(torch.from_numpy(descriptors)).double().numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("n", "channels", "dim"), [(60, 20, 8), (20, 60, 8), (20, 60, 19), (60, 20, 20)])
def test_equals_numpys_pca(n: int, channels: int, dim: int, power: float) -> None:
    fit, new = some_descriptors(n, channels), some_descriptors(15, channels, seed=1)
    got, want = apply(fit_reduction(fit, dim, power), new), numpy_reduction(fit, dim, power, new)
    assert got.shape == (15, dim)
    signs = np.sign((got * want).sum(0))  # a principal direction has no sign
    np.testing.assert_allclose(got * signs, want, atol=2e-3)


def test_whitened_covariance_is_the_identity() -> None:
    fit = some_descriptors(300, 24)
    reduction = fit_reduction(fit, 12, 1.0)
    whitened = (fit - reduction.mean.numpy()) @ reduction.projection.numpy().T
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(12), atol=1e-3)


def test_unwhitened_pca_only_rotates() -> None:
    fit = some_descriptors(30, 64)
    reduction = fit_reduction(fit, 29, 0.0)
    rows = reduction.projection.double().numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(29), atol=1e-3)


def test_beginning_of_a_descriptor_is_a_smaller_reduction() -> None:
    fit = some_descriptors(60, 20)
    whole, half = apply(fit_reduction(fit, 10, 1.0), fit), apply(fit_reduction(fit, 5, 1.0), fit)
    np.testing.assert_allclose(unit(whole[:, :5]), half, atol=1e-4)


def test_shape_type_and_length() -> None:
    reduction = fit_reduction(some_descriptors(30, 64), 7, 0.5)
    output = reduction(torch.randn(3, 64))
    assert output.shape == (3, 7)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.norm(dim=1), torch.ones(3))


def test_mean_descriptor_gives_no_nan() -> None:
    reduction = fit_reduction(some_descriptors(30, 64), 7, 0.5)
    assert torch.isfinite(reduction(reduction.mean[None])).all()


@pytest.mark.parametrize(("n", "dim"), [(10, 10), (10, 11), (10, 0), (10, -1)])
def test_as_many_dimensions_as_photos_are_refused(n: int, dim: int) -> None:
    with pytest.raises(ModelError, match=rf"^a {dim}-D reduction needs more than {dim} photos, got {n}$"):
        fit_reduction(some_descriptors(n, 64), dim, 0.5)


@pytest.mark.parametrize("shape", [(3, 63), (64,), (1, 2, 64)])
def test_wrong_descriptors(shape: tuple[int, ...]) -> None:
    reduction = Reduction(64, 7)
    with pytest.raises(ModelError) as caught:
        reduction(torch.zeros(shape))
    assert str(caught.value) == f"reduction expects B×64, got {shape}"


def test_state_round_trip() -> None:
    reduction = fit_reduction(some_descriptors(30, 64), 7, 0.5)
    assert not any(parameter.requires_grad for parameter in reduction.parameters())
    other = Reduction(64, 7)
    other.load_state_dict(reduction.state_dict())
    new = torch.randn(3, 64)
    assert torch.equal(other(new), reduction(new))


@pytest.mark.parametrize("power", POWERS)
def test_repeated_photos_do_not_fill_the_descriptor_with_noise(power: float) -> None:
    """240 photos of 40 views span 39 directions: the rest is rounding errors, not to be blown up."""
    views = unit(some_descriptors(40, 256))
    fit = np.repeat(views, 6, axis=0)
    reduced = apply(fit_reduction(fit, 100, power), fit)
    assert np.square(reduced[:, 39:]).sum(1).max() < 1e-6
    want = numpy_reduction(views, 39, power, views)
    similarities, wanted = reduced[::6] @ reduced[::6].T, want @ want.T
    np.testing.assert_allclose(similarities, wanted, atol=0.02)


def test_photos_all_alike_give_finite_descriptors() -> None:
    views = unit(some_descriptors(3, 64))
    reduction = fit_reduction(np.repeat(views[:1], 70, axis=0), 10, 0.5)
    assert np.isfinite(apply(reduction, views)).all()


def collection(
    n: int, *, identity: int, nuisance: float = 0.0, noise: float, channels: int = 256, seed: int = 0
) -> Views:
    """Descriptors of n photos and of their halves.

    The place shows in `identity` directions; light and weather fill three with `nuisance`; the rest is noise.
    """
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n, identity))

    def view() -> Floats:
        parts = [
            places + rng.normal(size=places.shape) / 10,
            rng.normal(size=(n, 3)) * nuisance,
            rng.normal(size=(n, channels - identity - 3)) * noise,
        ]
        return unit(np.concatenate(parts, axis=1))

    return view(), view(), view()


def choose(views: Views, max_dim: int = 512) -> Choice:
    return choose_reduction(*views, np.arange(len(views[0])), max_dim=max_dim)


@pytest.mark.parametrize("n", [160, 300])
def test_no_whitening_where_the_weak_directions_are_noise(n: int) -> None:
    choice = choose(collection(n, identity=12, noise=0.5))
    assert choice.kept is not None
    assert choice.kept.power == 0.0
    ranks = [candidate.reciprocal_rank for candidate in choice.tried]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("n", [160, 300])
def test_much_whitening_where_a_nuisance_hides_the_place(n: int) -> None:
    choice = choose(collection(n, identity=30, nuisance=20.0, noise=0.02))
    assert choice.kept is not None
    assert choice.kept.power >= 0.75
    assert choice.kept.dim <= n // 2
    assert choice.kept.reciprocal_rank > 3 * choice.tried[0].reciprocal_rank


def test_least_whitening_where_all_are_as_good() -> None:
    choice = choose(collection(160, identity=40, noise=0.01))
    assert choice.kept is not None
    assert choice.kept.power == 0.0
    assert choice.kept.reciprocal_rank == 1.0


def test_less_whitening_where_more_is_hardly_better() -> None:
    """The best is not kept when less whitening lies within one standard error of it."""
    choice = choose(collection(160, identity=30, nuisance=2.0, noise=0.6))
    assert choice.kept is not None
    best = max(choice.tried, key=lambda candidate: candidate.reciprocal_rank)
    assert choice.kept.power < best.power
    assert best.reciprocal_rank - choice.kept.reciprocal_rank < 0.01


def test_choice_helps_photos_it_has_not_seen() -> None:
    """The kept reduction finds fresh views of the places better than the plain descriptors do."""
    views = collection(200, identity=30, nuisance=20.0, noise=0.02)
    kept = choose(views).kept
    assert kept is not None
    reduction = fit_reduction(views[0], kept.dim, kept.power)
    fresh = collection(200, identity=30, nuisance=20.0, noise=0.02)[1]  # the same places

    def recall(queries: NDArray[np.floating], database: NDArray[np.floating]) -> float:
        return float(((queries @ database.T).argmax(1) == np.arange(200)).mean())

    assert recall(fresh, views[2]) < 0.5
    assert recall(apply(reduction, fresh), apply(reduction, views[2])) > 0.8


def test_candidates_are_the_least_whitened_first() -> None:
    choice = choose(collection(160, identity=12, noise=0.3))
    assert [(candidate.dim, candidate.power) for candidate in choice.tried] == [
        (159, 0.0),
        *((80, power) for power in (0.25, 0.5, 0.75, 1.0)),
    ]
    assert choice.kept in choice.tried


@pytest.mark.parametrize("max_dim", [16, 80, 512])
def test_dimension_stays_below_what_is_allowed_and_what_fits(max_dim: int) -> None:
    choice = choose(collection(160, identity=12, noise=0.3), max_dim)
    for candidate in choice.tried:
        assert candidate.dim == min(max_dim, 159 if candidate.power == 0 else 80)


def test_few_photos_stay_unreduced() -> None:
    assert choose(collection(MIN_PHOTOS - 1, identity=12, noise=0.3)) == Choice(None)
    assert choose(collection(MIN_PHOTOS, identity=12, noise=0.3)).kept is not None


def test_without_enough_halves_the_choice_is_half_whitening() -> None:
    views = collection(160, identity=12, noise=0.3)
    few = np.arange(20)
    choice = choose_reduction(views[0], views[1][few], views[2][few], few)
    assert choice.kept is not None
    assert (choice.kept.dim, choice.kept.power, choice.tried) == (80, 0.5, ())


def test_halves_of_some_photos_in_any_order() -> None:
    views = collection(300, identity=30, nuisance=20.0, noise=0.02)
    rows = np.random.default_rng(1).permutation(300)[:120]
    choice = choose_reduction(views[0], views[1][rows], views[2][rows], rows)
    assert choice.kept is not None
    assert choice.kept.power >= 0.75


def test_choice_is_deterministic_and_leaves_its_input_alone() -> None:
    views = collection(160, identity=30, nuisance=5.0, noise=0.1)
    before = [view.copy() for view in views]
    assert choose(views) == choose(views)
    for view, was in zip(views, before, strict=True):
        np.testing.assert_array_equal(view, was)


def test_photos_all_alike_are_survived() -> None:
    view = np.repeat(unit(some_descriptors(1, 64)), 160, axis=0)
    choice = choose((view, view, view))
    assert choice.kept is not None
    assert choice.kept.power == 0.0
