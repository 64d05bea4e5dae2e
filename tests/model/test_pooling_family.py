"""VLAD, GhostVLAD, average, GeM and clips: each against its formula in loops, and at its limits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.clusters import rank_by_halves
from model.errors import ModelError
from model.layers.poolings import (
    NORMALISATIONS,
    POOLINGS,
    VLAD,
    Average,
    GeM,
    NetVLAD,
    Pooling,
    build_pooling,
)

K, D = 4, 6
ALL = pytest.mark.parametrize("name", POOLINGS)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return x / max(float(x.norm()), 1e-12)


def made(name: str, *, seed: int = 0, **settings: Any) -> Pooling:
    """Every parameter drawn by itself, as after training; GeM's p above 1."""
    ghosts = {"ghosts": 2} if name == "ghostvlad" else {}
    everything: dict[str, Any] = {**ghosts, **settings}
    layer = build_pooling(name, clusters=K, channels=D, **everything).double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + number))
    if isinstance(layer, GeM):
        nn.init.constant_(layer.p, 2.5)
    return layer


@ALL
@pytest.mark.parametrize("width", [1, 4, 5])
def test_whole_and_halves(name: str, width: int) -> None:
    layer, maps = made(name), draw(2, D, 3, width)
    half = max(1, width // 2)
    expected = [layer(maps), layer(maps[..., :half]), layer(maps[..., -half:])]
    torch.testing.assert_close(layer.whole_and_halves(maps), torch.stack(expected, 1))


def locals_of(maps: Tensor) -> list[Tensor]:
    """Each local descriptor of one map, D H W."""
    return [maps[:, i, j] for i in range(maps.shape[1]) for j in range(maps.shape[2])]


def naive(layer: Pooling, frames: list[Tensor]) -> Tensor:
    """The descriptor of one clip, whose maps are D H W, in loops."""
    xs = [x for frame in frames for x in locals_of(frame)]
    if isinstance(layer, Average):
        return unit(torch.stack(xs).sum(0))
    if isinstance(layer, GeM):
        p = layer.p.item()
        means = [sum(max(float(x[d]), 1e-6) ** p for x in xs) / len(xs) for d in range(D)]
        return unit(torch.tensor([mean ** (1 / p) for mean in means], dtype=torch.float64))
    centres = layer.get_parameter("centres").detach()
    residuals = torch.zeros(K, D, dtype=torch.float64)
    for x in map(unit, xs):
        if isinstance(layer, VLAD):
            nearest = min(range(K), key=lambda k: float((x - centres[k]).norm()))
            residuals[nearest] += x - centres[nearest]
        elif isinstance(layer, NetVLAD):
            bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
            exps = [math.exp(float(w @ x + b)) for w, b in zip(layer.weight.detach(), bias, strict=True)]
            for k in range(K):
                residuals[k] += exps[k] / sum(exps) * (x - centres[k])
    if isinstance(layer, VLAD) and layer.normalisation == "ssr":
        residuals = residuals.sign() * residuals.abs().sqrt()
    elif not isinstance(layer, VLAD) or layer.normalisation == "intra":
        residuals = torch.stack([unit(row) for row in residuals])
    return unit(residuals.flatten())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("netvlad", {"version": 2}),
        *(("vlad", {"normalisation": normalisation}) for normalisation in NORMALISATIONS),
        ("ghostvlad", {}),
        ("ghostvlad", {"version": 2}),
        ("average", {}),
        ("gem", {}),
    ],
)
def test_equals_the_formula_for_photos_and_clips(name: str, settings: dict[str, Any]) -> None:
    layer = made(name, **settings)
    maps = draw(3, D, 3, 5, seed=9, scale=20)
    want = torch.stack([naive(layer, [frame]) for frame in maps])
    torch.testing.assert_close(layer(maps).detach(), want, rtol=1e-9, atol=1e-11)
    frames = [draw(1, D, 2, 3, seed=10), draw(1, D, 4, 1, seed=11, scale=3)]
    clip = layer.pool_clip(frames).detach()[0]
    torch.testing.assert_close(clip, naive(layer, [frame[0] for frame in frames]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@ALL
def test_gradients(name: str, normalisation: str) -> None:
    layer = made(name, normalisation=normalisation)
    names = [name for name, _ in layer.named_parameters()]
    parameters = tuple(parameter.detach().requires_grad_() for parameter in layer.parameters())
    maps = draw(2, D, 2, 3, seed=5).abs().add(0.1).requires_grad_()

    def pool(maps: Tensor, *values: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (maps,))
        return output

    assert torch.autograd.gradcheck(pool, (maps, *parameters))


@ALL
def test_every_parameter_learns(name: str) -> None:
    layer = made(name)
    maps = draw(2, D, 3, 3, seed=2).abs().requires_grad_()
    (layer(maps) * draw(2, len(layer(draw(1, D, 3, 3))[0]), seed=3)).sum().backward()
    for parameter in (maps, *layer.parameters()):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0


@ALL
def test_clip(name: str) -> None:
    layer = made(name)
    frames = [draw(2, D, 3, 4, seed=seed).abs() for seed in range(3)]
    one = layer(frames[0])
    torch.testing.assert_close(layer.pool_clip(frames[:1]), one)  # T = 1
    torch.testing.assert_close(layer.pool_clip([frames[0]] * 5), one)  # a frame repeated
    clip = layer.pool_clip(frames)
    torch.testing.assert_close(layer.pool_clip(frames[::-1]), clip)  # order
    mean = torch.stack([layer(frame) for frame in frames]).mean(0)
    mean = mean / mean.norm(dim=1, keepdim=True)
    assert (mean - clip).abs().max().item() > 1e-4  # not the mean of the frames' own
    torch.testing.assert_close(clip.norm(dim=1), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ModelError, match="at least one frame"):
        layer.pool_clip([])


@ALL
def test_nothing_there_is_no_nan(name: str) -> None:
    layer = made(name).requires_grad_(True)
    for maps in (torch.zeros(1, D, 2, 2, dtype=torch.float64), torch.full((1, D, 2, 2), 1e30)):
        maps.requires_grad_()
        descriptor = layer(maps)
        descriptor.sum().backward()
        assert torch.isfinite(descriptor).all()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())


@ALL
def test_maps_in_half_precision_are_pooled_in_fp32(name: str) -> None:
    layer = made(name).float()
    maps = draw(2, D, 3, 4).abs().to(torch.bfloat16)
    assert layer(maps).dtype == torch.float32
    torch.testing.assert_close(layer(maps), layer(maps.float()))


@ALL
def test_wrong_shape(name: str) -> None:
    with pytest.raises(ModelError, match=rf"expects maps B×{D}×H×W, got \(2, 5, 3, 3\)$"):
        made(name)(torch.zeros(2, 5, 3, 3))


def test_vlad_by_hand() -> None:
    """Two clusters on the axes; (3, 4) is nearer to the second, (1, 0) to the first, by (0, 0)."""
    centres = torch.tensor([[0.9, 0.0], [0.0, 1.0]])
    maps = torch.tensor([[[3.0, 2.0]], [[4.0, 0.0]]])[None]  # local descriptors (3, 4) and (2, 0)
    layer = VLAD.from_centres(centres, normalisation="none")
    sums = layer.accumulate(maps)
    torch.testing.assert_close(sums, torch.tensor([[0.1, 0.0, 0.6, -0.2]]))
    torch.testing.assert_close(layer(maps), sums / math.sqrt(0.01 + 0.36 + 0.04))
    rooted = VLAD.from_centres(centres, normalisation="ssr")(maps)
    torch.testing.assert_close(
        rooted, torch.tensor([[0.1**0.5, 0.0, 0.6**0.5, -(0.2**0.5)]]) / 0.9**0.5, atol=2e-6, rtol=1e-5
    )
    intra = VLAD.from_centres(centres)(maps)
    torch.testing.assert_close(intra, torch.tensor([[1.0, 0.0, 0.6 / 0.4**0.5, -0.2 / 0.4**0.5]]) / 2**0.5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_an_empty_cluster_is_zero(normalisation: str) -> None:
    centres = torch.cat([torch.eye(D)[:2], -10 * torch.ones(1, D)])
    descriptor = VLAD.from_centres(centres, normalisation=normalisation)(draw(2, D, 3, 3).abs().float())
    assert (descriptor[:, 2 * D :] == 0).all()
    assert torch.isfinite(descriptor).all()


def test_netvlad_2_sharpened_is_vlad() -> None:
    centres = draw(K, D, seed=1)
    maps = draw(3, D, 4, 4, seed=2)
    hard = VLAD.from_centres(centres).double()(maps)
    soft = NetVLAD.from_centres(centres, 1e6, version=2).double()(maps)
    torch.testing.assert_close(soft.detach(), hard.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("version", [1, 2])
def test_ghosts(version: int) -> None:
    """G = 0 is NetVLAD; so are ghosts that take nothing; ghosts that take all leave zeros."""
    centres = draw(K + 3, D, seed=1)
    maps = draw(2, D, 4, 4, seed=2).abs()
    plain = NetVLAD.from_centres(centres[:K], 5.0, version=version).double()
    none = NetVLAD.from_centres(centres[:K], 5.0, version=version, ghosts=0).double()
    assert torch.equal(none(maps), plain(maps))
    ghosts = NetVLAD.from_centres(centres, 5.0, version=version, ghosts=3).double()
    assert ghosts(maps).shape == (2, K * D)
    taken = ghosts.assign(maps).sum(1).detach()
    assert float(taken.max()) <= 1
    assert float(taken.min()) < 0.9
    for logit, want in ((-1e4, plain(maps)), (1e4, torch.zeros(2, K * D, dtype=torch.float64))):
        with torch.no_grad():
            ghosts.weight[K:] = logit  # times a local descriptor of positive numbers
            if ghosts.bias is not None:
                ghosts.bias[K:] = logit
        torch.testing.assert_close(ghosts(maps), want, atol=1e-9, rtol=0)


def test_gem_between_average_and_maximum() -> None:
    maps = draw(1, D, 5, 5, seed=3).abs()
    average = GeM(D, p=1.0).double()(maps)
    torch.testing.assert_close(average, Average(D)(maps))
    maximum = GeM(D, p=200.0).double()(maps / maps.max())
    want = maps.amax((2, 3)) / maps.amax((2, 3)).norm()
    torch.testing.assert_close(maximum.detach(), want, atol=2e-2, rtol=0)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ModelError, match="unknown pooling 'max'"):
        build_pooling("max")
    with pytest.raises(ModelError, match="intra, ssr or none, got 'l1'"):
        VLAD(2, D, normalisation="l1")
    with pytest.raises(ModelError, match="1 cluster"):
        VLAD(0, D)
    with pytest.raises(ModelError, match="1 cluster and 0 ghosts"):
        NetVLAD(2, D, ghosts=-1)


def test_clusters_that_say_nothing_come_last() -> None:
    """Cluster 1 looks alike in all photos; cluster 0's halves are alike within a photo."""
    own = draw(8, 1, D, seed=1)
    same = draw(1, 1, D, seed=2).expand(8, 1, D)
    noise = [0.1 * draw(8, 2, D, seed=seed) for seed in (3, 4)]
    left, right = (torch.cat([same, own], 1) + n for n in noise)
    assert rank_by_halves(left, right).tolist() == [1, 0]
