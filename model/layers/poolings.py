"""Pooling layers: from the local descriptors of a conv map, or of a clip's maps, to one descriptor.

Letters: B batch, T frames, D channels, H W map, N = H·W local descriptors, K clusters, G ghosts.

Every layer is a sum over local descriptors followed by normalisations. So frames of a clip are pooled as in
ActionVLAD (Girdhar et al., CVPR 2017): their sums are added and normalised once. A clip's descriptor lies in
the same space as a photo's, and a clip of one frame equals that photo.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ModelError

POOLINGS = ("netvlad", "vlad", "ghostvlad", "average", "gem")
CLUSTERED = ("netvlad", "vlad", "ghostvlad")
NORMALISATIONS = ("intra", "ssr", "none")
ONE_LAYER, TWO_LAYERS = LAYERS = ("conv5_3", "conv4_3+conv5_3")
"""Names of the layers that are pooled."""
EPSILON = 1e-12


class Pooling(nn.Module):
    """Base of all poolings. Input: B D H W. Output: B C, fp32, unit length.

    Raises:
        ModelError: maps of another shape than B×D×H×W.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def accumulate(self, maps: Tensor) -> Tensor:
        """Return sums over the local descriptors of each map, B D H W → B S."""
        raise NotImplementedError

    def finish(self, sums: Tensor) -> Tensor:
        """Return the descriptor of each row of sums, B S → B C, unit length."""
        raise NotImplementedError

    def forward(self, maps: Tensor) -> Tensor:
        return self.finish(self.accumulate(maps))

    def pool_clip(self, frames: Sequence[Tensor]) -> Tensor:
        """Return one descriptor for a clip: T maps of B D H W, with any H and W → B C."""
        if not frames:
            raise ModelError("a clip needs at least one frame, got none")
        return self.finish(torch.stack([self.accumulate(maps) for maps in frames]).sum(0))

    def whole_and_halves(self, maps: Tensor) -> Tensor:
        """Return the descriptors of maps, of their left halves and of their right ones, B D H W → B 3 C.

        The middle column of an odd number belongs to neither half; a single column is both.
        """
        width = maps.shape[3]
        half = width // 2
        if not half:
            return torch.stack([self(maps)] * 3, 1)
        left = self.accumulate(self._columns(maps, 0, half))
        right = self.accumulate(self._columns(maps, width - half, width))
        whole = left + right
        if width % 2:
            whole = whole + self.accumulate(self._columns(maps, half, half + 1))
        return torch.stack([self.finish(sums) for sums in (whole, left, right)], 1)

    def _columns(self, maps: Tensor, start: int, stop: int) -> Tensor:
        return maps[..., start:stop]

    def _local(self, maps: Tensor, like: Tensor | None = None) -> Tensor:
        """Return the local descriptors of each map in at least fp32, B D N."""
        dtype = like.dtype if like is not None else torch.promote_types(maps.dtype, torch.float32)
        return self._shaped(maps).flatten(2).to(dtype)  # B D N

    def _shaped(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or maps.shape[1] != self.channels:
            name = type(self).__name__
            raise ModelError(f"{name} expects maps B×{self.channels}×H×W, got {tuple(maps.shape)}")
        return maps


class NetVLAD(Pooling):
    """NetVLAD (Arandjelović et al., CVPR 2016): soft-assigned residuals to K cluster centres.

    V_k = Σ_i a_k(x_i)(x_i − c_k), a = softmax_k(w_k·x + b_k), every x L2-normalised; each V_k is
    L2-normalised (intra-normalisation), then the whole.

    Version 1, the published layer, has no bias: w_k = α ĉ_k, with the residuals to the
    un-normalised centres c_k. Version 2 has one: w_k = 2αc_k, b_k = −α‖c_k‖². w, b and c are
    separate parameters. Computed as one batched product, A·Xᵀ − (ΣA)⊙C, so that no
    B×K×D×N tensor exists; the length of each x is divided out of the assignments and of A, not
    of X, so that no second B×D×N tensor exists either.

    With G ghosts it is GhostVLAD (Zhong et al., ACCV 2018): the softmax runs over K + G clusters, and
    what the ghosts take is dropped without renormalising: they absorb what says nothing about the place.

    Output: B K·D, index k·D + d.
    """

    def __init__(self, clusters: int = 64, channels: int = 512, *, version: int = 1, ghosts: int = 0) -> None:
        super().__init__(channels)
        if version not in (1, 2):
            raise ModelError(f"NetVLAD has versions 1 and 2, got {version}")
        if clusters < 1 or ghosts < 0:
            raise ModelError(f"NetVLAD needs 1 cluster and 0 ghosts at least, got {clusters} and {ghosts}")
        self.weight = nn.Parameter(torch.zeros(clusters + ghosts, channels))
        self.bias = nn.Parameter(torch.zeros(clusters + ghosts)) if version == 2 else None
        self.centres = nn.Parameter(torch.zeros(clusters, channels))

    @classmethod
    def from_centres(cls, centres: Tensor, alpha: float, *, version: int = 1, ghosts: int = 0) -> NetVLAD:
        """Initialise the layer from k-means centres and the assignment sharpness α.

        Args:
            centres: (K + G) D; the last G are the ghosts'.
        """
        layer = cls(len(centres) - ghosts, centres.shape[1], version=version, ghosts=ghosts)
        with torch.no_grad():
            layer.centres.copy_(centres[: len(centres) - ghosts])
            if layer.bias is None:
                layer.weight.copy_(alpha * F.normalize(centres, dim=1))
            else:
                layer.weight.copy_(2 * alpha * centres)
                layer.bias.copy_(-alpha * centres.square().sum(1))
        return layer

    def assign(self, maps: Tensor) -> Tensor:
        """Return soft assignments of each local descriptor, B K N; with ghosts they add up to less than 1."""
        x = self._local(maps, self.centres)  # B D N
        return self._assign(x, _inverse_length(x))

    def accumulate(self, maps: Tensor) -> Tensor:
        """Return residuals V_k before any normalisation, B K·D."""
        x = self._local(maps, self.centres)  # B D N
        scale = _inverse_length(x)  # B 1 N
        a = self._assign(x, scale)  # B K N
        residuals = (a * scale) @ x.mT - a.sum(2, keepdim=True) * self.centres  # B K D
        return residuals.flatten(1)  # B K·D

    def finish(self, sums: Tensor) -> Tensor:
        return _unit(_intra(sums, len(self.centres)))

    def _assign(self, x: Tensor, scale: Tensor) -> Tensor:
        logits = (self.weight @ x) * scale  # B K+G N
        if self.bias is not None:
            logits = logits + self.bias[:, None]
        return logits.softmax(1)[:, : len(self.centres)]  # B K N


class VLAD(Pooling):
    """VLAD (Jégou et al., CVPR 2010): residuals of each local descriptor to its nearest centre.

    V_k = Σ_{x: NN(x) = c_k} (x − c_k), every x L2-normalised. Then, by `normalisation`: "none", the first
    paper's; "ssr", signed square root, sign(v)√|v| (Jégou et al., PAMI 2012); "intra", each V_k
    L2-normalised (Arandjelović and Zisserman, CVPR 2013); and the whole is L2-normalised. A cluster that
    nothing is nearest to stays zero. The centres are trainable; the assignment is a choice without gradient.

    Output: B K·D, index k·D + d.
    """

    def __init__(self, clusters: int = 64, channels: int = 512, *, normalisation: str = "intra") -> None:
        super().__init__(channels)
        if normalisation not in NORMALISATIONS:
            raise ModelError(f"VLAD's normalisation is {_or(NORMALISATIONS)}, got {normalisation!r}")
        if clusters < 1:
            raise ModelError(f"VLAD needs 1 cluster at least, got {clusters}")
        self.normalisation = normalisation
        self.centres = nn.Parameter(torch.zeros(clusters, channels))

    @classmethod
    def from_centres(cls, centres: Tensor, *, normalisation: str = "intra") -> VLAD:
        """Initialise the layer with k-means centres, K D."""
        layer = cls(*centres.shape, normalisation=normalisation)
        with torch.no_grad():
            layer.centres.copy_(centres)
        return layer

    def accumulate(self, maps: Tensor) -> Tensor:
        """Return residuals V_k before any normalisation, B K·D."""
        x = self._local(maps, self.centres)  # B D N
        scale = _inverse_length(x)  # B 1 N
        with torch.no_grad():  # argmin ‖x − c‖² = argmax 2c·x − ‖c‖²
            nearest = (2 * (self.centres @ x) * scale - self.centres.square().sum(1)[:, None]).argmax(1)
        a = F.one_hot(nearest, len(self.centres)).mT.to(x.dtype)  # B K N
        residuals = (a * scale) @ x.mT - a.sum(2, keepdim=True) * self.centres  # B K D
        return residuals.flatten(1)  # B K·D

    def finish(self, sums: Tensor) -> Tensor:
        if self.normalisation == "intra":
            sums = _intra(sums, len(self.centres))
        elif self.normalisation == "ssr":
            sums = sums.sign() * sums.abs().clamp_min(EPSILON).sqrt()  # clamped: √'s slope at 0 is infinite
        return _unit(sums)


class TwoLayers(Pooling):
    """Two poolings, of conv5_3 and of conv4_3, whose descriptors are concatenated.

    conv4_3 has four times the cells and less meaning: it separates places that look alike, and conv5_3
    recognises places that have changed. Input: `joined` maps. Output: B (K₅ + K₄)·D, unit length.
    """

    def __init__(self, upper: NetVLAD | VLAD, lower: NetVLAD | VLAD) -> None:
        super().__init__(upper.channels + 4 * lower.channels)
        self.upper, self.lower = upper, lower

    def accumulate(self, maps: Tensor) -> Tensor:
        upper, lower = apart(self._shaped(maps))
        return torch.cat([self.upper.accumulate(upper), self.lower.accumulate(lower)], 1)

    def finish(self, sums: Tensor) -> Tensor:
        border = self.upper.centres.numel()
        descriptors = (self.upper.finish(sums[:, :border]), self.lower.finish(sums[:, border:]))
        return _unit(torch.cat(descriptors, 1))

    def _columns(self, maps: Tensor, start: int, stop: int) -> Tensor:
        upper, lower = apart(maps)
        return joined(upper[..., start:stop], lower[..., 2 * start : 2 * stop])


def joined(upper: Tensor, lower: Tensor) -> Tensor:
    """Join maps of conv5_3 (B 512 H W) and conv4_3 (B 512 2H 2W, or a row more) as one, B 2560 H W, fp32.

    One follows the other in memory: `apart` moves nothing.
    """
    height, width = upper.shape[2:]
    lower = lower[:, :, : 2 * height, : 2 * width].reshape(len(lower), -1, height, width)
    return torch.cat([upper.float(), lower.float()], 1)


def apart(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Split what `joined` has joined."""
    channels = maps.shape[1] // 5
    height, width = maps.shape[2:]
    return maps[:, :channels], maps[:, channels:].reshape(len(maps), channels, 2 * height, 2 * width)


class Average(Pooling):
    """Average pooling (Babenko and Lempitsky, ICCV 2015: SPoC without its centre prior): Σ_i x_i.

    The sum and the mean are the same once L2-normalised. The maps are taken as they are, before conv5_3's
    ReLU: on cambridge-street recall@1 is 69 so, and 65 after it. Output: B D.
    """

    def accumulate(self, maps: Tensor) -> Tensor:
        return self._local(maps).sum(2)  # B D

    def finish(self, sums: Tensor) -> Tensor:
        return _unit(sums)


class GeM(Pooling):
    """Generalised mean (Radenović et al., PAMI 2018): (mean_i max(x_i, ε)^p)^(1/p), ε = 1e−6, p trainable.

    p = 1 is the average, p → ∞ the maximum. One p for all channels. The mean's 1/N is left out, which an
    L2-normalised result does not show. Output: B D.
    """

    FLOOR = 1e-6

    def __init__(self, channels: int = 512, *, p: float = 3.0) -> None:
        super().__init__(channels)
        self.p = nn.Parameter(torch.tensor(p))

    def accumulate(self, maps: Tensor) -> Tensor:
        return self._local(maps, self.p).clamp_min(self.FLOOR).pow(self.p).sum(2)  # B D

    def finish(self, sums: Tensor) -> Tensor:
        return _unit(sums.clamp_min(torch.finfo(sums.dtype).tiny).pow(1 / self.p))


def build_pooling(
    name: str,
    *,
    clusters: int = 64,
    channels: int = 512,
    version: int = 1,
    ghosts: int = 0,
    normalisation: str = "intra",
) -> Pooling:
    """Return a pooling by name, its clusters still to be fitted.

    Raises:
        ModelError: an unknown name, or a setting that the layer refuses.
    """
    match name:
        case "netvlad":
            return NetVLAD(clusters, channels, version=version)
        case "ghostvlad":
            return NetVLAD(clusters, channels, version=version, ghosts=ghosts)
        case "vlad":
            return VLAD(clusters, channels, normalisation=normalisation)
        case "average":
            return Average(channels)
        case "gem":
            return GeM(channels)
    raise ModelError(f"unknown pooling {name!r}: one of {', '.join(POOLINGS)}")


def _inverse_length(x: Tensor) -> Tensor:
    """1/max(‖x‖, ε) of each local descriptor, B D N → B 1 N."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length.clamp_min(EPSILON).reciprocal()


def _intra(sums: Tensor, clusters: int) -> Tensor:
    """Scale each cluster's D numbers to unit length, B K·D → B K·D."""
    residuals = sums.view(len(sums), clusters, -1)  # B K D
    normalised: Tensor = F.normalize(residuals, dim=2, eps=EPSILON)
    return normalised.flatten(1)


def _unit(descriptors: Tensor) -> Tensor:
    return F.normalize(descriptors, dim=1, eps=EPSILON)


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
