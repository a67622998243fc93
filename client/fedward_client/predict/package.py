"""A verified model package as a model that answers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward_client.models import OpenedModel, open_model
from fedward_client.training.weights import load_weights
from fedward_common.errors import ConfigError
from fedward_common.models.image_objectives import Counted
from fedward_common.models.objectives import objective_of
from fedward_common.models.registry import build_model
from fedward_common.study.imaging import ImageData, ImageMasks, Pictures
from fedward_common.study.inputs import input_size
from fedward_common.study.spec import StudySpec
from fedward_common.study.tabular import LabelRule

NOT_CLINICAL = "not for clinical use"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an answer comes from; every output carries its words."""

    study_id: str
    study_sha256: str
    model_sha256: str

    @classmethod
    def of(cls, opened: OpenedModel) -> "Origin":
        """That of a package that was proven whole."""
        return cls(
            study_id=opened.study.id,
            study_sha256=opened.signed.digest,
            model_sha256=opened.sha256,
        )

    @property
    def words(self) -> str:
        """One line for people."""
        return (
            f"Fedward study {self.study_id} ({self.study_sha256[:12]}), model "
            f"{self.model_sha256[:12]}; {NOT_CLINICAL}"
        )

    @property
    def facts(self) -> dict[str, str]:
        """The whole digests."""
        return {
            "study": self.study_id,
            "study_sha256": self.study_sha256,
            "model_sha256": self.model_sha256,
            "intended_use": NOT_CLINICAL,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictor:
    """The model of a package, its study and its origin."""

    study: StudySpec
    data: Pictures
    model: nn.Module
    origin: Origin

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        approved: frozenset[str] | None,
        public_key: str | None = None,
        study_file: Path | None = None,
    ) -> "Predictor":
        """The model in `folder` after the package was proven whole (see `open_model`).

        `study_file` is the signed study where the package brings none.

        Raises:
            SignatureRefused: the package or the study is not what was signed.
            ConfigError: no study, or one that is not about images.
        """
        return cls.of(
            open_model(folder, approved=approved, public_key=public_key, study_file=study_file)
        )

    @classmethod
    def of(cls, opened: OpenedModel) -> "Predictor":
        """The model of a package that was proven whole. Raises: as `open`."""
        study = opened.study
        if not isinstance(study.data, Pictures):
            raise ConfigError(f"predict: expected a study of images, found {study.data.kind}")
        model = build_model(study.model, input_size(study.data)).eval()
        load_weights(model, opened.weights)
        return cls(study=study, data=study.data, model=model, origin=Origin.of(opened))

    @property
    def names(self) -> tuple[str, ...]:
        """What the scores are of: the label's column, the classes or labels, the structures."""
        if isinstance(self.data, ImageMasks):
            return self.data.structures
        label = self.data.label if isinstance(self.data, ImageData) else None
        if label is None or isinstance(label, LabelRule):
            return (label.column,) if label is not None else ()
        return label.names

    def scores(self, features: npt.NDArray[np.float32]) -> dict[str, float]:
        """The score in [0, 1] of each class or label of one flat image."""
        with torch.inference_mode():
            found = objective_of(self.study).scores(self.model(torch.from_numpy(features[None])))
        return dict(zip(self.names, map(float, found.reshape(-1)), strict=True))

    def mask(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The number of a structure for each pixel of one image of the study's size.

        Raises:
            ConfigError: the model finds no structures.
        """
        objective = objective_of(self.study)
        if not isinstance(self.data, ImageMasks) or not isinstance(objective, Counted):
            raise ConfigError("predict: expected a model of structures, found one of classes")
        with torch.inference_mode():
            logits = objective.predict(self.model, torch.from_numpy(features[None]))
        found: npt.NDArray[np.int64] = logits.argmax(dim=0).numpy()
        return found
