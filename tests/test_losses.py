"""Losses: exact cases, masks, gradients, and a perceptual distance that ranks as people do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gha_core.losses import PerceptualDistance, l1, soft_iou, structural_dissimilarity


@pytest.fixture(scope="module")
def perceptual() -> PerceptualDistance:
    return PerceptualDistance()


def _picture(size: int = 64) -> torch.Tensor:
    """[1, 3, size, size]: stripes and a disc, smooth enough to blur and to shift."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = 0.5 + 0.4 * torch.sin(x * 0.9)
    disc = ((x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 4) ** 2).float()
    return torch.stack([stripes, disc, 0.5 * stripes + 0.5 * disc])[None]


def test_l1_is_the_mean_over_weighted_pixels_and_channels() -> None:
    image, target = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    target[..., 0, 0] = 0.6
    target[..., 1, 1] = 100.0
    weight = torch.tensor([[1.0, 1.0], [1.0, 0.0]])[None, None]
    assert l1(image, target, weight).item() == pytest.approx(0.2)


@pytest.mark.parametrize("loss", [l1, soft_iou, structural_dissimilarity])
def test_no_weighted_pixel_gives_a_finite_loss(loss: object) -> None:
    image = torch.rand(1, 3, 16, 16)
    assert torch.isfinite(loss(image, image, torch.zeros(1, 1, 16, 16)))  # type: ignore[operator]


def test_soft_iou_of_known_overlap() -> None:
    left, half = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    left[..., :2], half[..., :1] = 1.0, 1.0
    everywhere = torch.ones(1, 1, 4, 4)
    assert soft_iou(left, half, everywhere).item() == pytest.approx(0.5)
    assert soft_iou(left, left, everywhere).item() == pytest.approx(0.0)


def test_structural_dissimilarity_of_equal_constant_and_inverted_pictures() -> None:
    picture, everywhere = _picture(), torch.ones(1, 1, 64, 64)
    same = structural_dissimilarity(picture, picture, everywhere)
    assert same.item() == pytest.approx(0, abs=1e-6)
    inverted = structural_dissimilarity(picture, 1 - picture, everywhere)
    assert inverted > 0.5  # anticorrelated windows have negative SSIM
    grey, dark = torch.full((1, 1, 16, 16), 0.6), torch.full((1, 1, 16, 16), 0.2)
    # Without variance only the means count: SSIM = (2 x y + C1) / (x² + y² + C1), C1 = 1e-4.
    expected = (1 - (2 * 0.12 + 1e-4) / (0.36 + 0.04 + 1e-4)) / 2
    assert structural_dissimilarity(grey, dark, torch.ones(1, 1, 16, 16)).item() == pytest.approx(
        expected, abs=1e-4
    )


def test_structural_dissimilarity_ignores_windows_that_leave_the_photo() -> None:
    picture = _picture()
    weight = torch.ones(1, 1, 64, 64)
    weight[..., 32:] = 0.0
    spoiled = picture.clone()
    spoiled[..., 32:] = torch.rand(1, 3, 64, 32)
    assert structural_dissimilarity(spoiled, picture, weight).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [l1, soft_iou, structural_dissimilarity])
def test_gradients(loss: object) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    target = torch.rand(1, 2, 12, 12, dtype=torch.float64)
    weight = torch.ones(1, 1, 12, 12, dtype=torch.float64)
    weight[..., :2] = 0
    assert torch.autograd.gradcheck(lambda x: loss(x, target, weight), image)  # type: ignore[operator]


def test_perceptual_distance_is_zero_only_for_equal_pictures(
    perceptual: PerceptualDistance,
) -> None:
    picture = _picture()
    assert perceptual(picture, picture).item() == 0.0
    assert perceptual(picture, 1 - picture) > 0.05


def test_perceptual_distance_minds_blur_more_than_a_shade(perceptual: PerceptualDistance) -> None:
    picture = _picture()
    blurred = F.avg_pool2d(picture, 7, 1, 3, count_include_pad=False)
    shaded = picture + (blurred - picture).abs().mean()  # the same mean difference, evenly spread
    slightly = F.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    assert perceptual(blurred, picture) > 2 * perceptual(shaded, picture)
    assert perceptual(blurred, picture) > perceptual(slightly, picture)


def test_perceptual_gradient_sharpens_a_blurred_picture(perceptual: PerceptualDistance) -> None:
    picture = _picture()
    image = F.avg_pool2d(picture, 5, 1, 2, count_include_pad=False).requires_grad_()
    before = perceptual(image, picture)
    (gradient,) = torch.autograd.grad(before, image)
    after = perceptual(image - 0.02 * gradient / gradient.abs().max(), picture)
    assert after < before
    assert not any(tensor.requires_grad for tensor in perceptual.buffers())


def test_perceptual_distance_takes_odd_sizes(perceptual: PerceptualDistance) -> None:
    image = torch.rand(2, 3, 37, 53)
    assert torch.isfinite(perceptual(image, torch.rand(2, 3, 37, 53)))
