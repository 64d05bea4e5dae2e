"""One thread for the network, and a model so small that a test can afford it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from model.layers.poolings import NetVLAD
from model.modelfile import ModelConfig, PlaceModel
from model.reduction import Reduction, fit_reduction


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pooling() -> NetVLAD:
    """Two clusters of 512 channels."""
    centres = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
    return NetVLAD.from_centres(nn.functional.normalize(centres, dim=1), 30.0)


@pytest.fixture(scope="session")
def reduction() -> Reduction:
    """1,024 → 8 dimensions, half whitened."""
    descriptors = np.random.default_rng(2).normal(size=(40, 1024)).astype(np.float32)
    return fit_reduction(descriptors, 8, 0.5)


@pytest.fixture(scope="session")
def small_model(pooling: NetVLAD, reduction: Reduction) -> PlaceModel:
    """One convolution of stride 16 in place of VGG16, with the shapes of the real thing."""
    backbone = nn.Sequential(nn.Conv2d(3, 512, 16, stride=16))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 100)
    config = ModelConfig(clusters=2, dim=8, power=0.5)
    return PlaceModel(config, backbone, pooling, reduction)
