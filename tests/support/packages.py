"""Model packages of image studies for tests, signed as a coordinator's are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedward_client.predict.package import Predictor
from fedward_common.arrays import Array
from fedward_common.canonical import sha256_hex
from fedward_common.models.registry import initial_tensors
from fedward_common.study.inputs import input_size
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.private_files import write_atomically
from fedward_common.trust.signing import SigningKey, key_sha256
from fedward_server.adapters.model_package import write_package


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package in `folder`, its signed study beside it, and the key that signed both."""

    folder: Path
    study_file: Path
    key: SigningKey

    def opened(self) -> Predictor:
        """The package as a model."""
        return Predictor.open(
            self.folder,
            approved=None,
            public_key=self.key.public_hex,
            study_file=self.study_file,
        )


def make_package(folder: Path, study: StudySpec, *, seed: int = 0) -> Package:
    """A package with made-up weights in `folder`."""
    key = SigningKey.generate()
    study = study.model_copy(update={"lead_key_sha256": key_sha256(key.public_hex)})
    generator = np.random.default_rng(seed)
    weights: dict[str, Array] = {
        name: (tensor + 0.3 * generator.normal(size=tensor.shape)).astype(np.float32)
        for name, tensor in initial_tensors(study.model, input_size(study.data)).items()
    }
    write_package(
        folder / "model", study=study, model=weights, card="card", epsilon={"a": 1.0}, key=key
    )
    signed = SignedStudy.sign(study, key)
    write_atomically(folder / "study.json", signed.canonical)
    assert len(sha256_hex(signed.canonical)) == 64
    return Package(folder=folder / "model", study_file=folder / "study.json", key=key)
