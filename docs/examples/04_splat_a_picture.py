"""The differentiable rasteriser on its own: Gaussians learn a picture.

python docs/examples/04_splat_a_picture.py photo.jpg splatted.png
"""

import sys
from pathlib import Path

import cv2
import torch

from gha_core.splatting import rasterize_gaussians

SIDE, GAUSSIANS, STEPS = 96, 1500, 120


def main(photo: Path, out: Path) -> None:
    picture = cv2.resize(cv2.imread(str(photo)), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    truth = torch.from_numpy(picture).float() / 255

    torch.manual_seed(0)
    means = torch.rand(GAUSSIANS, 3) - torch.tensor([0.5, 0.5, -1.0])  # 1 to 2 m in front
    means[:, :2] *= means[:, 2:]  # so that they fill the view at every depth
    scales = torch.full((GAUSSIANS, 3), -4.0)  # logarithms of metres
    turns, opacities = torch.randn(GAUSSIANS, 4), torch.zeros(GAUSSIANS)
    colours = torch.rand(GAUSSIANS, 3)
    learned = [each.requires_grad_() for each in (means, turns, scales, opacities, colours)]

    K = torch.tensor([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1]])
    optimiser = torch.optim.Adam(learned, lr=0.01)
    for step in range(STEPS):
        drawn = rasterize_gaussians(
            means, turns, scales.exp(), opacities.sigmoid(), colours, K, torch.eye(4), SIDE, SIDE
        ).features
        loss = (drawn - truth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in (0, STEPS - 1):
            print(f"step {step}: mean absolute error {loss.item():.3f}")
    cv2.imwrite(str(out), (drawn.detach().clamp(0, 1) * 255).byte().numpy())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
