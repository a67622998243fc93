"""What a site keeps between the rounds of a study, and what that changes in messages.

SCAFFOLD: a site keeps its control variate; the shared one comes with each round's model. FedBN: a
site keeps its own normalisation layers; they are in no update. Either is made of the site's noised
gradients and public numbers alone: nothing is released that training does not charge.
Harmonisation: a site keeps its own location and scale, which are noised and charged as a release.
"""

from collections.abc import Mapping

import numpy as np

from fedward_common.arrays import Array, Tensors
from fedward_common.study.harmonisation import LOCATION, SCALE, harmonisation_of
from fedward_common.study.spec import FedBN, Scaffold, StudySpec

Shapes = Mapping[str, tuple[int, ...]]

SHARED = "scaffold.shared."
"""The shared control variate of a tensor goes by this and the tensor's name."""


def keeps_state(study: StudySpec) -> bool:
    """Whether the sites of a study keep anything between its rounds."""
    return isinstance(study.aggregation, Scaffold | FedBN) or harmonisation_of(study) is not None


def is_kept(study: StudySpec, name: str) -> bool:
    """Whether a tensor of this name stays at the sites."""
    return isinstance(study.aggregation, FedBN) and name.startswith(study.aggregation.kept)


def released_shapes(study: StudySpec, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """What an update of the study has, of all the model's tensors."""
    return {name: shape for name, shape in shapes.items() if not is_kept(study, name)}


def state_shapes(study: StudySpec, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """What a site keeps: nothing in most studies."""
    harmonisation = harmonisation_of(study)
    if harmonisation is not None:
        return dict.fromkeys((LOCATION, SCALE), (len(harmonisation.columns),))
    if isinstance(study.aggregation, Scaffold):
        return dict(shapes)
    return {name: shape for name, shape in shapes.items() if is_kept(study, name)}


def round_shapes(study: StudySpec, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """What comes to a site with an instruction to train."""
    shared = shapes if isinstance(study.aggregation, Scaffold) else {}
    return {**shapes, **{SHARED + name: shape for name, shape in shared.items()}}


def round_tensors(model: Tensors, shared: Tensors) -> dict[str, Array]:
    """The model and the shared control variate as they travel."""
    return {**model, **{SHARED + name: value for name, value in shared.items()}}


def opened_round(tensors: Tensors) -> tuple[dict[str, Array], dict[str, Array]]:
    """The model and the shared control variate in what came."""
    shared = {n.removeprefix(SHARED): t for n, t in tensors.items() if n.startswith(SHARED)}
    return {n: t for n, t in tensors.items() if not n.startswith(SHARED)}, shared


def own_model(study: StudySpec, model: Tensors, state: Tensors) -> dict[str, Array]:
    """The model as this site trains and uses it: with its own normalisation layers."""
    own = {name: value for name, value in state.items() if is_kept(study, name)}
    return {**model, **own}


def correction(shared: Tensors, state: Tensors) -> dict[str, Array]:
    """What SCAFFOLD adds to every gradient: shared minus own control variate."""
    return {n: value - state[n] if n in state else value for n, value in shared.items()}


def new_state(
    study: StudySpec, *, before: Tensors, after: Tensors, shared: Tensors, state: Tensors
) -> dict[str, Array]:
    """What a site keeps after a round that moved its model from `before` to `after`.

    SCAFFOLD: own - shared + (before - after) / (steps x rate). `after` is the update that the site
    releases, noise in it. Source: Karimireddy et al. 2020, algorithm 1, option II. Harmonisation:
    the same constants as before.
    """
    if harmonisation_of(study) is not None:
        return dict(state)
    if isinstance(study.aggregation, Scaffold):
        reach = study.local_steps * study.training.learning_rate
        moved = {name: (np.float64(before[name]) - after[name]) / reach for name in after}
        fixed = correction(shared, state)
        return {name: (moved[name] - fixed[name]).astype(np.float32) for name in moved}
    return {name: value for name, value in after.items() if is_kept(study, name)}


def kept_words(study: StudySpec) -> str:
    """What stays at the hospitals, for people; empty in most studies."""
    if isinstance(study.aggregation, Scaffold):
        return (
            "each hospital keeps a control variate between rounds (SCAFFOLD). It is computed from "
            "the noised update that the hospital sends and from public numbers, so it costs no "
            "privacy of its own and never leaves"
        )
    if isinstance(study.aggregation, FedBN):
        return (
            f"each hospital keeps its own {', '.join(study.aggregation.kept)} (FedBN): learned "
            "from the same noised gradients, in no update. The released model has their start "
            "values; only a hospital of the study has the model that was evaluated there"
        )
    harmonisation = harmonisation_of(study)
    if harmonisation is not None:
        return (
            "each hospital keeps its own location and scale of "
            f"{', '.join(harmonisation.columns)}, computed once from its training patients with "
            "noise and charged as a release; they never leave. The model expects these columns "
            "adjusted: only a hospital of the study can use it as it was evaluated"
        )
    return ""
