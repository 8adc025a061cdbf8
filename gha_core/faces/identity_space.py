"""A linear space of head shapes, learned from people sampled with MakeHuman's own controls.

MakeHuman makes people with products of a few "phenotype" controls (gender, age, muscle, weight,
ancestry) and some 150 local changes (nose width, chin height, ...). We draw adults from those, take
pose and size away, and keep the principal components: the coefficients of the space then have unit
variance, so that a plain Gaussian prior on them means "a plausible head".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gha_core.faces.makehuman import Floats, HeadMesh, local_targets, read_target

TOPICS = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "neck")
GENDERS, AGES = ("female", "male"), ("young", "old")
MUSCLES = ("minmuscle", "averagemuscle", "maxmuscle")
WEIGHTS = ("minweight", "averageweight", "maxweight")
ANCESTRIES = ("african", "asian", "caucasian")
# Spread of the local controls, whose full range is -1..1: at the ends people become caricatures.
LOCAL_SPREAD, LOCAL_LIMIT, ASYMMETRY = 0.28, 0.8, 0.06


def sample_people(data: Path, mesh: HeadMesh, count: int, seed: int) -> Floats:
    """[count, V, 3] neutral heads of random adults, decimetres, unaligned."""
    rng = np.random.default_rng(seed)
    amounts, targets = zip(*_phenotypes(count, rng), *_local_changes(data, count, rng), strict=True)
    offsets = np.stack(
        [mesh.gather(read_target(data / f"mpfb2/targets/{name}.target.gz")) for name in targets]
    )
    moved = np.stack(amounts, 1) @ offsets.reshape(len(targets), -1)
    return mesh.vertices + moved.reshape(count, -1, 3)


def _local_changes(
    data: Path, count: int, rng: np.random.Generator
) -> Iterator[tuple[Floats, str]]:
    """Per target the amounts [count] and its name, with one draw per pair of sides plus a little of
    its own for each side: faces are nearly even."""
    shared: dict[str, Floats] = {}
    for negative, positive in local_targets(data, TOPICS):
        name = positive.partition("/")[2]
        base = name[2:] if name[:2] in ("l-", "r-") else name
        if base not in shared:
            shared[base] = rng.normal(0, LOCAL_SPREAD, count)
        own = rng.normal(0, ASYMMETRY, count) if base != name else 0.0
        amount = np.clip(shared[base] + own, -LOCAL_LIMIT, LOCAL_LIMIT)
        yield amount.clip(0), positive
        if negative:
            yield (-amount).clip(0), negative


def _phenotypes(count: int, rng: np.random.Generator) -> Iterator[tuple[Floats, str]]:
    """Per target the amounts [count] and its name; a control between two targets mixes them
    linearly, and controls multiply."""
    gender = _mix(rng.beta(0.4, 0.4, count), 2)  # mostly near the ends
    age = _mix(rng.beta(1, 2.5, count), 2)
    muscle = _mix(rng.normal(0.5, 0.18, count).clip(0, 1), 3)
    weight = _mix(rng.normal(0.5, 0.18, count).clip(0, 1), 3)
    ancestry = rng.dirichlet([0.6] * 3, count)
    for (g, sex), (a, era) in product(enumerate(GENDERS), enumerate(AGES)):
        adult = gender[:, g] * age[:, a]
        for r, race in enumerate(ANCESTRIES):
            yield ancestry[:, r] * adult, f"macrodetails/{race}-{sex}-{era}"
        for (m, strong), (w, heavy) in product(enumerate(MUSCLES), enumerate(WEIGHTS)):
            name = f"macrodetails/universal-{sex}-{era}-{strong}-{heavy}"
            yield adult * muscle[:, m] * weight[:, w], name


def _mix(value: Floats, anchors: int) -> Floats:
    """[n, anchors] weights of linear interpolation of ``value`` in 0..1 between even anchors."""
    return np.clip(1 - np.abs(value[:, None] * (anchors - 1) - np.arange(anchors)), 0, 1)


def similarity_to(reference: Floats, points: Floats) -> tuple[float, Floats, Floats]:
    """Scale, rotation [3, 3] and translation [3] that best map ``points`` [n, 3] to ``reference``
    in the least-squares sense: reference = scale * R @ points + t (Umeyama 1991)."""
    centre_r, centre_p = reference.mean(0), points.mean(0)
    r, p = reference - centre_r, points - centre_p
    u, singular, vt = np.linalg.svd(r.T @ p)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ flip @ vt
    scale = float((singular * np.diag(flip)).sum() / (p**2).sum())
    return scale, rotation, centre_r - scale * rotation @ centre_p


def align(heads: Floats, rigid: NDArray[np.bool_], rounds: int = 3) -> Floats:
    """Heads [N, V, 3] without their pose and size, fitted to their mean on ``rigid`` vertices."""
    mean = heads.mean(0)
    result = heads
    for _ in range(rounds):
        fits = [similarity_to(mean[rigid], head[rigid]) for head in heads]
        result = np.stack([s * head @ r.T + t for (s, r, t), head in zip(fits, heads, strict=True)])
        size = np.ptp(heads.mean(0)[rigid, 1]) / np.ptp(result.mean(0)[rigid, 1])
        mean = result.mean(0) * size
    return result


def principal_components(
    heads: Floats, mirror: NDArray[np.int64], weights: Floats, count: int
) -> tuple[Floats, Floats, float]:
    """Mean [V, 3], basis [count, V, 3] for unit-variance coefficients, and the share of the
    (weighted) variance that it explains. Mirrored copies of all heads are added first, so that the
    mean is symmetric and each component is even or odd.

    Args:
        weights: [V] importance of each vertex.
    """
    mirrored = heads[:, mirror] * np.array([-1.0, 1.0, 1.0])
    everyone = np.concatenate([heads, mirrored])
    mean = everyone.mean(0)
    mean = (mean + mean[mirror] * [-1, 1, 1]) / 2
    centred = everyone - mean
    weighted = (centred * np.sqrt(weights)[:, None]).reshape(len(everyone), -1)
    # The Gram matrix of the people is far smaller than that of the coordinates.
    values, vectors = np.linalg.eigh(weighted @ weighted.T)
    order = np.argsort(values)[::-1][:count]
    basis = np.einsum("nk,nvc->kvc", vectors[:, order], centred) / np.sqrt(len(everyone))
    strongest = np.abs(basis).reshape(count, -1).argmax(1)
    signs = np.sign(basis.reshape(count, -1)[np.arange(count), strongest])
    explained = float(values[order].sum() / values.sum())
    return mean, basis * signs[:, None, None], explained
