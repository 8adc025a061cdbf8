"""Our Adam against PyTorch's."""

from __future__ import annotations

import torch

from gha_core.adam import Adam, Group


def test_it_does_what_pytorchs_does_also_after_a_restart() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator) for size in ((7, 3), (5,), (2, 2))]
    ours, theirs = ([value.clone().requires_grad_() for value in start] for _ in range(2))
    adam = Adam([Group(ours[:2], 1e-2), Group(ours[2:], 1e-3)])
    wanted = torch.optim.Adam([{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:]}], 1e-3)
    for step in range(20):
        if step == 10:
            restarted = Adam(adam.groups)
            restarted.restore(adam.tensors())
            adam = restarted
        for group, other in zip(adam.groups, wanted.param_groups, strict=True):
            group.rate = other["lr"] = other["lr"] * 0.9
        for each, other in zip(ours, theirs, strict=True):
            # The middle one takes no part in every third step.
            taken = each is not ours[1] or step % 3
            gradient = torch.randn(each.shape, generator=generator) if taken else None
            each.grad, other.grad = gradient, None if gradient is None else gradient.clone()
        adam.step()
        wanted.step()
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True)), step
    adam.zero_grad()
    assert all(each.grad is None for each in ours)
