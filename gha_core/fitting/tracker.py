"""The tracker: identity, scale, and the pose and expression of every timestep from 2D landmarks.

1. A pose per timestep from perspective-n-point (:mod:`gha_core.fitting.initial_pose`).
2. On training timesteps only: identity, scale, poses and expressions together. Expressions carry a
   sparsity prior (:mod:`gha_core.fitting.expressions`), so that what never moves is taken for
   identity. With photos and mattes of
   several cameras the shape then follows its outlines and ears (:mod:`gha_core.fitting.outlines`).
3. With identity and scale fixed: poses and expressions of each sequence, smooth in time. Training
   timesteps do not see test timesteps; those are then fitted with their neighbours' help.
4. With photos: poses and expressions at which the skin looks the same in all timesteps
   (:mod:`gha_core.fitting.appearance`); how it looks is learned from training timesteps.

Steps 2 and 3 are Levenberg-Marquardt on robust residuals in head lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.errors import StageError, locate
from gha_core.faces import FaceModel
from gha_core.faces.portrait import vertex_normals
from gha_core.fitting import rotations
from gha_core.fitting.appearance import Motion, Photos, Skin, align
from gha_core.fitting.expressions import ExpressionPrior
from gha_core.fitting.given_poses import GivenPoses, adopt
from gha_core.fitting.habits import with_habits
from gha_core.fitting.initial_pose import InitialPose, initial_pose, usual_scale
from gha_core.fitting.observations import LandmarkModel, Observations
from gha_core.fitting.outlines import Mattes, fit_outlines
from gha_core.fitting.residuals import (
    POSE,
    Conditions,
    Pull,
    Quadratic,
    State,
    Unknown,
    distances,
    linearise,
    pull,
)
from gha_core.fitting.solver import (
    Smoothness,
    Step,
    bounded,
    smoothness,
    solve_shared,
    solve_smooth,
)
from gha_core.pose import HeadPose
from gha_core.progress import track

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Priors and effort; lengths in head lengths, angles in radians.

    Attributes:
        identity_prior: weight of the squared identity coefficients, per timestep and view.
        expression_sparsity: weight of the sum of a timestep's expression coefficients.
        robust: residual beyond which a landmark counts as an outlier.
        acceleration: factor on how much pose and expression may accelerate; 0 = no smoothing.
        identity_timesteps: at most so many training timesteps, evenly spread, teach the identity.
        iterations: most steps of each stage.
        max_residual: a timestep whose median residual is larger is set aside.
    """

    identity_prior: float = 0.2
    expression_sparsity: float = 0.5
    robust: float = 0.06
    acceleration: float = 1.0
    identity_timesteps: int = 100
    iterations: int = 15
    max_residual: float = 0.08


# Second differences per timestep (25 to 30 per second) of one standard deviation: axis-angle,
# metres per metre of head length, expressions; eyes blink and jump, so that they may do more.
_TURN, _MOVE, _EXPRESSION, _EYES = 0.004, 0.004, 0.08, 0.5
SIZE = 0.045  # standard deviation of people's head lengths, relative
WORN = 12.0  # factor on sparsity while the identity is learned
_SKIN = 2500  # points of the face whose looks are compared; some models have far more


@dataclass(frozen=True)
class Track:
    """What was found.

    Attributes:
        identity: [I]; scale: metres per unit of head space.
        rotation: [T, 3] axis-angle head to world; translation: [T, 3] metres; expression: [T, E].
        residual: [T, C] RMS distance of the landmarks that face the camera, pixels; NaN = no view.
        relative: [T] median distance of these landmarks over all views, head lengths.
        failed: [T] whether the timestep is not explained (set it aside).
    """

    identity: Floats
    scale: float
    rotation: Floats
    translation: Floats
    expression: Floats
    residual: Floats
    relative: Floats
    failed: NDArray[np.bool_]

    def select(self, keep: NDArray[np.int64]) -> Track:
        """The timesteps ``keep`` (indices, ascending)."""
        names = ("rotation", "translation", "expression", "residual", "relative", "failed")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def world(self, model: FaceModel, index: int) -> Floats:
        """[V, 3] the head in the world, at one timestep."""
        identity, expression = (
            torch.from_numpy(each).float() for each in (self.identity, self.expression[index])
        )
        pose = HeadPose(self.rotation[index], self.translation[index], self.scale)
        return pose.to_world(model.vertices(identity, expression).numpy())


# The matrices are small: a second thread costs more than it gives, and adds up in another order.
@threadpool_limits.wrap(limits=1, user_api="blas")
def track_head(
    model: FaceModel,
    observations: Observations,
    settings: Settings | None = None,
    photos: Photos | None = None,
    given: GivenPoses | None = None,
    mattes: Mattes | None = None,
) -> Track:
    """Fit ``model`` to all timesteps of ``observations``, each with at least one view.

    ``photos`` are those of the observations' timesteps and cameras; with None, landmarks alone say
    where the head is. ``given`` poses of the observations' timesteps are taken as they are, up to
    what the two models' coordinates differ by; only expressions are then fitted, and photos not
    used, where there are any. With photos and ``mattes`` of at least two cameras outlines say how
    wide the face is.

    With one camera the scale cannot be seen and stays that of the mean person.

    Raises:
        StageError: no training timestep, or calibration and landmarks contradict each other.
    """
    settings = settings or Settings()
    if not observations.is_train.any():
        raise StageError(
            "No training timestep has landmarks, so the identity cannot be learned. Hold out less "
            "(splits), or look at the rejects of the landmarks stage."
        )
    landmarks = LandmarkModel.of(model)
    known = np.flatnonzero(observations.is_train)
    training = observations.select(known)
    start = initial_pose(training, landmarks, model.metres_per_unit)
    usual = usual_scale(start.scale, model.metres_per_unit)
    fitter = Fitter(landmarks, settings, model, usual)
    state = first_state(training, landmarks, start, np.zeros(landmarks.identity.shape[2]), {})
    references = dict(zip(training.sequences, state.reference, strict=True))
    state = fitter.poses(state, training)

    few = _spread(len(known), settings.identity_timesteps)
    sees_scale = bool((training.views[few] >= 2).any())
    learned = fitter.identity(_select(state, few), training.select(few), sees_scale)
    habits = not sees_scale  # in one view nothing contradicts those of the detector
    if photos is not None and mattes is not None and sees_scale:
        habits = True  # now the outlines do
        learned = fit_outlines(
            learned, known[few], model, landmarks, observations.cameras, photos, mattes
        )
    # The learned shape moves the pose a little; carry that over before the fits per sequence.
    state = replace(state, identity=learned.identity, scale=learned.scale)
    if habits:
        habitual = with_habits(landmarks, learned, training.select(few), settings.robust)
        fitter = Fitter(habitual, settings, model, usual)
    state = fitter.poses(_scatter(state, few, learned), training)
    for name in references:
        mine = np.flatnonzero(np.array(training.sequences) == name)
        fitted = fitter.sequence(_select(state, mine), training.select(mine))
        state = _scatter(state, mine, fitted)

    held_out = np.flatnonzero(~observations.is_train)
    if len(held_out):
        state = _with_held_out(fitter, state, known, observations, references, model)
    if given is not None and given.known.any():
        state = _with_given_poses(fitter, state, observations, given)
    elif photos is not None:
        state = _aligned(state, model, observations, photos, known[few].tolist())
    return _result(state, fitter.landmarks, observations, settings)


def _with_held_out(
    fitter: Fitter,
    trained: State,
    known: NDArray[np.int64],
    observations: Observations,
    references: dict[str, Floats],
    model: FaceModel,
) -> State:
    """The state of all timesteps: the training ones (``known``) as they are, and the others fitted
    to the identity as it is, with their neighbours' help."""
    others = np.flatnonzero(~observations.is_train)
    held_out = observations.select(others)
    start = initial_pose(held_out, fitter.landmarks, model.metres_per_unit, trained.scale)
    part = first_state(held_out, fitter.landmarks, start, trained.identity, references)
    part = fitter.poses(part, held_out)
    count = len(observations.timesteps)
    state = _scatter(_empty(trained, count), known, trained)
    state = _scatter(state, others, part)
    names = np.array(observations.sequences)
    for name in dict.fromkeys(held_out.sequences):
        mine = np.flatnonzero(names == name)
        fitted = fitter.sequence(_select(state, mine), observations.select(mine))
        test = np.flatnonzero(~observations.is_train[mine])
        state = _scatter(state, mine[test], _select(fitted, test))
    return state


# Farther apart than this, two trackings are not of the same frames.
_SAME_TURN, _SAME_PLACE = 0.35, 0.25  # radians, head lengths


def _with_given_poses(
    fitter: Fitter, state: State, observations: Observations, given: GivenPoses
) -> State:
    """The state with the given poses where they are known, and expressions that suit them.

    Raises:
        StageError: no training timestep is among them, or they contradict the landmarks.
    """
    if not (given.known & observations.is_train).any():
        raise StageError(
            "The capture's own tracking has none of the training timesteps. Hold out less, or set "
            "tracking.poses: landmarks."
        )
    adopted = adopt(given, state.matrices, state.translation, observations.is_train)
    turn, place = float(np.median(adopted.turned)), float(np.median(adopted.moved)) / state.scale
    if turn > _SAME_TURN or place > _SAME_PLACE:
        raise StageError(
            f"The capture's own tracking contradicts the landmarks: {np.degrees(turn):.0f} degrees "
            f"and {place:.2f} head lengths apart in half of the timesteps. Is it of these frames, "
            "in this world? To do without it set tracking.poses: landmarks."
        )
    known = given.known
    rotation = rotations.logarithm(adopted.rotation @ state.reference.swapaxes(-1, -2))
    state = replace(
        state,
        rotation=np.where(known[:, None], rotation, state.rotation),
        translation=np.where(known[:, None], adopted.translation, state.translation),
    )
    names = np.array(observations.sequences)
    for name in dict.fromkeys(observations.sequences):
        # Training timesteps do not see test timesteps.
        for train in (True, False):
            chosen = (names == name) & (observations.is_train == train) & known
            mine = np.flatnonzero(chosen)
            if len(mine):
                part = fitter.sequence(_select(state, mine), observations.select(mine), True)
                state = _scatter(state, mine, part)
    return state


def _aligned(
    state: State,
    model: FaceModel,
    observations: Observations,
    photos: Photos,
    teachers: Sequence[int],
) -> State:
    """The state with poses and expressions that agree with the photos."""
    # Test timesteps are smoothed by themselves: training must not see them.
    names = np.array(observations.sequences)
    parts = [
        np.flatnonzero((names == name) & (observations.is_train == train))
        for name in dict.fromkeys(observations.sequences)
        for train in (True, False)
    ]
    numbers = np.array(observations.timesteps)
    face = np.flatnonzero(model.regions["face"].numpy())
    face = face[_spread(len(face), _SKIN)]
    identity = torch.from_numpy(state.identity).float()
    neutral = model.mean + torch.tensordot(identity, model.identity_basis, dims=1)
    vertices = neutral.double().numpy()
    skin = Skin(
        vertices[face],
        vertex_normals(vertices, model.faces.numpy())[face],
        np.ascontiguousarray(model.expression_basis.double().numpy()[:, face].transpose(1, 2, 0)),
    )
    motion = Motion(state.matrices, state.translation, state.expression, state.scale)
    runs = [(part, numbers[part]) for part in parts if len(part)]
    found = align(motion, skin, observations.cameras, photos, teachers, runs)
    return replace(
        state,
        rotation=rotations.logarithm(found.matrices @ state.reference.swapaxes(-1, -2)),
        translation=found.translation,
        expression=found.expression,
    )


class Fitter:
    """The stages of the fit; each takes a state and returns a better one."""

    def __init__(
        self, landmarks: LandmarkModel, settings: Settings, model: FaceModel, usual_scale: float
    ) -> None:
        self.landmarks, self.settings = landmarks, settings
        self.usual_scale = usual_scale
        self.expressions = ExpressionPrior.of(model.expression_names)
        self.eyes = np.array([name.startswith("eye") for name in model.expression_names])

    def poses(self, state: State, observations: Observations) -> State:
        """Better poses alone; expressions, identity and scale stay."""

        def solve(at: State, q: Quadratic, damping: float) -> Step:
            step, _ = solve_shared(q, np.full(q.frames_gradient.shape, np.nan), damping)
            still = np.zeros_like(at.expression)
            return np.concatenate([step, still], axis=1), np.zeros(len(at.identity) + 1)

        return self._minimise(
            "finding the head's poses", state, observations, solve, lambda _: 0.0, "pose", 6, 4.0
        )

    def identity(self, state: State, observations: Observations, sees_scale: bool) -> State:
        """Everything at once, timesteps independent of each other."""
        rounds = self.settings.iterations
        for wide, most in ((4.0, rounds // 2), (1.0, rounds)):
            state = self.together(state, observations, sees_scale, most, wide)
        return state

    def together(
        self,
        state: State,
        observations: Observations,
        sees_scale: bool,
        iterations: int,
        wide: float = 1.0,
    ) -> State:
        """One round of :meth:`identity`."""
        # More than in the fit per sequence: an expression worn all the time is a shape.
        sparsity = WORN * self.settings.expression_sparsity
        strength = self.settings.identity_prior * float(observations.views.sum())

        def size(at: State) -> float:
            return (at.scale / self.usual_scale - 1) / SIZE

        def prior(at: State) -> float:
            own = 0.5 * strength * (float(at.identity @ at.identity) + size(at) ** 2)
            return own + self.expressions.energy(at.expression, sparsity)

        def solve(at: State, q: Quadratic, damping: float) -> Step:
            self.expressions.add_to(q, at.expression, sparsity)
            index = np.arange(len(at.identity))
            q.shared[index, index] += strength
            q.shared_gradient[:-1] += strength * at.identity
            slope = 1 / (self.usual_scale * SIZE)
            q.shared[-1, -1] += strength * slope**2
            q.shared_gradient[-1] += strength * size(at) * slope
            if not sees_scale:
                q.shared[-1], q.shared[:, -1], q.mixed[..., -1] = 0.0, 0.0, 0.0
                q.shared[-1, -1], q.shared_gradient[-1] = 1.0, 0.0
            return bounded(
                at.expression, q.frames_gradient, lambda settled: solve_shared(q, settled, damping)
            )

        title = "fitting the identity"
        return self._minimise(title, state, observations, solve, prior, "all", iterations, wide)

    def sequence(self, state: State, observations: Observations, keep_poses: bool = False) -> State:
        """Poses and expressions of one sequence, smooth in time."""
        sparsity = self.settings.expression_sparsity
        smooth = self._smoothness(observations, state.scale)

        def values(at: State) -> Floats:
            return np.concatenate([at.rotation, at.translation, at.expression], axis=1)

        def prior(at: State) -> float:
            return smooth.energy(values(at)) + self.expressions.energy(at.expression, sparsity)

        def solve(at: State, q: Quadratic, damping: float) -> Step:
            self.expressions.add_to(q, at.expression, sparsity)
            now = values(at)

            def free(settled: Floats) -> Step:
                if keep_poses:
                    settled[:, :POSE] = 0
                step = solve_smooth(q, smooth, now, settled, damping)
                return step, np.zeros(len(at.identity) + 1)

            return bounded(at.expression, q.frames_gradient + smooth.gradient(now), free)

        title, rounds = f"fitting sequence {observations.sequences[0]}", self.settings.iterations
        # Expressions may still be far away: a closing eye must not pass for an outlier.
        for wide, most in ((4.0, rounds // 2), (1.0, rounds)):
            state = self._minimise(title, state, observations, solve, prior, "frames", most, wide)
        return state

    def _smoothness(self, observations: Observations, scale: float) -> Smoothness:
        deviation = np.concatenate(
            [np.full(3, _TURN), np.full(3, _MOVE * scale), np.where(self.eyes, _EYES, _EXPRESSION)]
        )
        precision = self.settings.acceleration / deviation**2
        return smoothness(np.array(observations.timesteps), precision)

    def _minimise(
        self,
        title: str,
        state: State,
        observations: Observations,
        solve: Callable[[State, Quadratic, float], Step],
        prior: Callable[[State], float],
        unknown: Unknown,
        iterations: int,
        wide: float = 1.0,
    ) -> State:
        """Levenberg-Marquardt; ``wide`` > 1: with a more forgiving robust loss, from far away."""
        robust = self.settings.robust * wide
        conditions = Conditions.at(state, self.landmarks, observations)

        def evaluate(at: State) -> tuple[Pull, float]:
            found = pull(at, self.landmarks, observations, conditions, robust)
            return found, found.energy + prior(at)

        found, energy = evaluate(state)
        damping = 1e-3
        for _ in track(range(iterations), title):
            quadratic = linearise(state, self.landmarks, found, unknown)
            better = False
            for _ in range(4):
                step = solve(state, _copy(quadratic), damping)
                candidate = state.moved(*step)
                new, new_energy = evaluate(candidate)
                better = new_energy < energy
                if better:
                    break
                damping *= 10
            if not better:
                break
            gain = (energy - new_energy) / max(energy, 1e-12)
            state, found, energy, damping = candidate, new, new_energy, max(damping / 10, 1e-6)
            if gain < 1e-4:
                break
        return state


def first_state(
    observations: Observations,
    landmarks: LandmarkModel,
    start: InitialPose,
    identity: Floats,
    references: dict[str, Floats],
) -> State:
    """The state before any fit. ``references``: rotations about which those of a sequence are
    counted; where absent, the mean of its own."""
    reference = np.empty_like(start.rotation)
    names = np.array(observations.sequences)
    for name in dict.fromkeys(observations.sequences):
        own = start.rotation[names == name]
        reference[names == name] = references[name] if name in references else rotations.mean(own)
    return State(
        reference=reference,
        rotation=rotations.logarithm(start.rotation @ reference.swapaxes(-1, -2)),
        translation=start.translation,
        expression=np.zeros((len(start.rotation), landmarks.expression.shape[2])),
        identity=identity,
        scale=start.scale,
    )


def _empty(like: State, count: int) -> State:
    """``count`` timesteps to be filled, with the identity and scale of ``like``."""
    return replace(
        like,
        reference=np.zeros((count, 3, 3)),
        rotation=np.zeros((count, 3)),
        translation=np.zeros((count, 3)),
        expression=np.zeros((count, like.expression.shape[1])),
    )


def _select(state: State, keep: NDArray[np.int64]) -> State:
    return replace(
        state,
        reference=state.reference[keep],
        rotation=state.rotation[keep],
        translation=state.translation[keep],
        expression=state.expression[keep],
    )


def _scatter(state: State, places: NDArray[np.int64], part: State) -> State:
    """``state`` with the timesteps at ``places`` taken from ``part``."""
    names = ("reference", "rotation", "translation", "expression")
    arrays = {name: getattr(state, name).copy() for name in names}
    for name, array in arrays.items():
        array[places] = getattr(part, name)
    return replace(state, **arrays)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Up to ``most`` even indices of ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _copy(q: Quadratic) -> Quadratic:
    return Quadratic(
        q.frames.copy(), q.frames_gradient.copy(), q.mixed.copy(), q.shared.copy(),
        q.shared_gradient.copy(),
    )  # fmt: skip


def _result(
    state: State, landmarks: LandmarkModel, observations: Observations, settings: Settings
) -> Track:
    conditions = Conditions.at(state, landmarks, observations)
    distance = distances(state, landmarks, observations, conditions)
    weight = conditions.trust
    total = weight.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.sqrt((weight * np.nan_to_num(distance) ** 2).sum(-1) / total)
    relative = np.where(total > 0, relative, np.nan)
    # Wild landmarks say nothing about the fit; a fit is bad where most of them are far away.
    per_timestep = np.array(
        [np.nanmedian(each) if np.isfinite(each).any() else np.inf for each in distance]
    )
    failed = ~(per_timestep <= settings.max_residual)
    if failed.mean() > 0.5:
        where = locate(observations.sequences[0], observations.timesteps[0])
        raise StageError(
            f"The head model explains the landmarks of only {np.sum(~failed)} of {len(failed)} "
            f"timesteps (median distance {np.median(per_timestep):.2f} head lengths, first at "
            f"{where}). Either the cameras' calibration does not belong to these frames "
            "(convention, image size, order of cameras), or the landmarks are not of one face."
        )
    vectors = rotations.logarithm(state.matrices)
    return Track(
        identity=state.identity,
        scale=state.scale,
        rotation=rotations.unwrapped(vectors, vectors[observations.is_train][0]),
        translation=state.translation,
        expression=state.expression,
        residual=relative * conditions.unit,
        relative=per_timestep,
        failed=failed,
    )
