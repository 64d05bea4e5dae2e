"""Pooling layers: the local descriptors of a conv map → one descriptor.

Letters: B batch, D channels, H W map, N = H·W local descriptors, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ModelError


class NetVLAD(nn.Module):
    """NetVLAD (Arandjelović et al., CVPR 2016): soft-assigned residuals to K cluster centres.

    V_k = Σ_i a_k(x_i)(x_i − c_k), a = softmax_k(w_k·x + b_k), every x L2-normalised; each V_k is
    L2-normalised (intra-normalisation), then the whole.

    Version 1, the published layer, has no bias: w_k = α ĉ_k, with the residuals to the
    un-normalised centres c_k. Version 2 has one: w_k = 2αc_k, b_k = −α‖c_k‖². w, b and c are
    separate parameters. Computed as one batched product, A·Xᵀ − (ΣA)⊙C, so that no
    B×K×D×N tensor exists.

    Input: B D H W. Output: B K·D, index k·D + d, fp32, unit length.
    """

    def __init__(self, clusters: int = 64, channels: int = 512, *, version: int = 1) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ModelError(f"NetVLAD has versions 1 and 2, got {version}")
        self.weight = nn.Parameter(torch.empty(clusters, channels))
        self.bias = nn.Parameter(torch.empty(clusters)) if version == 2 else None
        self.centres = nn.Parameter(torch.empty(clusters, channels))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def from_centres(cls, centres: Tensor, alpha: float, *, version: int = 1) -> NetVLAD:
        """The layer initialised from k-means centres, K D, and the assignment sharpness α."""
        layer = cls(*centres.shape, version=version)
        with torch.no_grad():
            layer.centres.copy_(centres)
            if layer.bias is None:
                layer.weight.copy_(alpha * F.normalize(centres, dim=1))
            else:
                layer.weight.copy_(2 * alpha * centres)
                layer.bias.copy_(-alpha * centres.square().sum(1))
        return layer

    def forward(self, maps: Tensor) -> Tensor:
        D = self.centres.shape[1]
        if maps.ndim != 4 or maps.shape[1] != D:
            raise ModelError(f"NetVLAD expects maps B×{D}×H×W, got {tuple(maps.shape)}")
        x = F.normalize(maps.flatten(2).to(self.centres.dtype), dim=1, eps=1e-12)  # B D N
        logits = self.weight @ x  # B K N
        if self.bias is not None:
            logits = logits + self.bias[:, None]
        a = logits.softmax(1)
        residuals = a @ x.mT - a.sum(2, keepdim=True) * self.centres  # B K D
        residuals = F.normalize(residuals, dim=2, eps=1e-12)
        return F.normalize(residuals.flatten(1), dim=1, eps=1e-12)  # B K·D
