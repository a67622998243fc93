"""Synthetic rows from a released model, with a statement of what they cost and do not promise."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from fedward_common.arrays import tensors_from_bytes
from fedward_common.errors import ConfigError
from fedward_common.models.autoencoder import Autoencoder
from fedward_common.models.gan import Gan
from fedward_common.models.registry import build_model, load_tensors
from fedward_common.privacy.accounting import epsilon_admission, epsilon_pld
from fedward_common.privacy.mechanism import study_event
from fedward_common.privacy.randomness import Csprng, RandomSource
from fedward_common.study import reconstruction
from fedward_common.study.generation import Generation, class_names
from fedward_common.study.imaging import ImageData
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import DpSgd, StudySpec
from fedward_common.study.table_decoding import drawn_rows
from fedward_common.study.tabular import TabularData
from fedward_common.trust.private_files import write_atomically
from fedward_server.adapters.model_package import MODEL, STUDY, verify_package

TABLE: Final = "synthetic.csv"
IMAGES: Final = "synthetic.npz"
STATEMENT: Final = "privacy.json"
MOST_ROWS: Final = 1_000_000
LABELS: Final = "labels.csv"
LIMITS: Final = (
    "No row is a person. Rows are drawn from the released model alone, so that drawing costs no "
    "more epsilon, however many are drawn.",
    "Epsilon bounds what the rows tell about any one patient of one hospital. They show what holds "
    "of patients as a whole, also what nobody meant to show.",
    "Means, rare values and what depends on several columns at once may be wrong. Nothing found in "
    "these rows is a finding before it is found in real ones.",
    "Each hospital can hold them against its own patients: fedward-client data synthetic. That "
    "shows coarse copying, and proves nothing where it shows none.",
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Released:
    """The model of a package that rows can be drawn from."""

    study: StudySpec
    data: TabularData | ImageData
    spread: float
    model: Autoencoder | Gan
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, *, public_key: str | None = None) -> "Released":
        """The variational autoencoder or generator in `folder`, after its package was verified.

        Raises:
            SignatureRefused, ProtocolError: the package is not what was signed.
            ConfigError: it has no study in it, or its model is none that rows of a table come from.
        """
        manifest = verify_package(folder, public_key=public_key)
        if not (folder / STUDY).is_file():
            raise ConfigError(
                f"model package {folder}: expected {STUDY} in it, which says what the columns are, "
                "found none"
            )
        study = SignedStudy.parse((folder / STUDY).read_bytes()).verify()
        task, data = study.task, study.data
        adjusted = any(release.kind == "site-harmonisation" for release in study.releases)
        if (
            not isinstance(task, reconstruction.Autoencoder | Generation)
            or not isinstance(data, TabularData | ImageData)
            or not study.model.sampled
            or adjusted
        ):
            how = ", harmonised" if adjusted else ""
            raise ConfigError(
                f"model package {folder}: expected a variational-autoencoder or gan of a table "
                f"or images as they are, found {study.model.name} on {data.kind}{how}"
            )
        model = build_model(study.model, data.input_size).eval()
        if not isinstance(model, Autoencoder | Gan):
            raise ConfigError(f"model package {folder}: expected a generator, found another model")
        weights = tensors_from_bytes((folder / MODEL).read_bytes())
        load_tensors(model, weights)
        # What a GAN generates is a record already; about what a decoder makes, records lie.
        spread = 0.0 if isinstance(task, Generation) else task.spread
        return cls(study=study, data=data, spread=spread, model=model, manifest=manifest)

    def rows(self, count: int, *, source: RandomSource) -> list[dict[str, str]]:
        """`count` rows, each of a code of its own; cells by column name.

        Raises:
            ConfigError: none, or more than `MOST_ROWS`.
        """
        if not isinstance(self.data, TabularData):
            raise ConfigError(f"rows: expected a model of a table, found one of {self.data.kind}")
        made = self._made(count, source=source)
        return drawn_rows(self.data, made, spread=self.spread, source=source)

    def images(self, count: int, *, source: RandomSource) -> npt.NDArray[np.uint8]:
        """`count` grey images [images, height, width], each of a code of its own.

        Raises:
            ConfigError: as `rows`.
        """
        if not isinstance(self.data, ImageData):
            raise ConfigError(f"rows: expected a model of images, found one of {self.data.kind}")
        return self.labelled_images(count, source=source)[0]

    def labelled_images(
        self, count: int, *, source: RandomSource
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None]:
        """As `images`, and the class of each, by the study's public shares; None where it has none.

        Raises:
            ConfigError: as `rows`.
        """
        if not isinstance(self.data, ImageData):
            raise ConfigError(f"rows: expected a model of images, found one of {self.data.kind}")
        classes = self._classes(count, source=source)
        made = self._made(count, source=source, classes=classes)
        made = made.reshape(count, self.data.height, self.data.width)
        pixels: npt.NDArray[np.uint8] = np.rint((made + 1.0) * 127.5).astype(np.uint8)
        return pixels, classes

    def _classes(self, count: int, *, source: RandomSource) -> npt.NDArray[np.int64] | None:
        shares = self.study.task.class_shares if isinstance(self.study.task, Generation) else ()
        if not shares:
            return None
        # Without the last limit: shares that sum to a little less than 1 leave nothing over.
        return np.searchsorted(np.cumsum(shares)[:-1], source.uniform(count), side="right")

    def _made(
        self,
        count: int,
        *,
        source: RandomSource,
        classes: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        if not 1 <= count <= MOST_ROWS:
            raise ConfigError(f"rows: expected 1 to {MOST_ROWS}, found {count}")
        told = () if classes is None else (torch.from_numpy(classes),)
        codes = source.normal(count * self.model.latent).reshape(count, self.model.latent)
        with torch.inference_mode():
            made: npt.NDArray[np.float32] = self.model.decode(
                torch.from_numpy(codes).float(), *told
            ).numpy()
        return made

    def statement(self, *, rows: int) -> dict[str, Any]:
        """What the rows cost, whose they are, and what they do not promise.

        Raises:
            ConfigError: the study is none of patient-level DP-SGD.
        """
        dp = self.study.dp
        if not isinstance(dp, DpSgd):
            raise ConfigError(f"dp.kind: expected dp-sgd, found {dp.kind!r}")
        event = study_event(self.study)
        shares = self.study.task.class_shares if isinstance(self.study.task, Generation) else ()
        return {
            "format": "fedward-synthetic/1",
            "study": self.manifest["study"],
            "model_sha256": self.manifest["model_sha256"],
            "rows": rows,
            **(
                {"columns": [column.name for column in self.data.columns]}
                if isinstance(self.data, TabularData)
                else {"shape": list(self.data.size)}
            ),
            **(
                {"classes": list(class_names(self.data)), "class_shares": list(shares)}
                if shares and isinstance(self.data, ImageData)
                else {}
            ),
            "privacy": {
                "unit": f"one {dp.unit} of one site",
                "epsilon_admission": epsilon_admission([event], delta=dp.delta),
                "epsilon_pld": epsilon_pld(event, delta=dp.delta),
                "delta": dp.delta,
                "noise": dp.placement,
                "of": "the study's training and evaluation; drawing rows adds nothing",
            },
            "synthetic": True,
            "limits": list(LIMITS),
        }


def synthesize(
    package: Path, *, rows: int, out: Path, public_key: str | None = None
) -> dict[str, Any]:
    """The statement of `rows` synthetic rows or images, written to `out` beside them: a table, or
    the array `images` in a .npz file; where images are of a class, also `labels` in it, and a table
    of image, class and its name.

    Raises:
        SignatureRefused, ProtocolError, ConfigError: as `Released`.
    """
    released = Released.open(package, public_key=public_key)
    statement = released.statement(rows=rows)
    files: dict[str, bytes] = {}
    if isinstance(released.data, TabularData):
        files[TABLE] = _table(released.rows(rows, source=Csprng()), statement["columns"])
    else:
        images, classes = released.labelled_images(rows, source=Csprng())
        labels = {} if classes is None else {"labels": classes}
        binary = io.BytesIO()
        np.savez_compressed(binary, images=images, **labels)  # type: ignore[arg-type]
        files[IMAGES] = binary.getvalue()
        if classes is not None:
            files[LABELS] = _label_table(classes, statement["classes"])
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / STATEMENT, json.dumps(statement, indent=1).encode() + b"\n")
    for file, content in files.items():
        write_atomically(out / file, content)
    return statement


def _label_table(classes: npt.NDArray[np.int64], names: list[str]) -> bytes:
    rows = [
        {"image": str(place), "class": str(one), "name": names[one]}
        for place, one in enumerate(classes.tolist())
    ]
    return _table(rows, ["image", "class", "name"])


def _table(rows: list[dict[str, str]], columns: list[str]) -> bytes:
    text = io.StringIO(newline="")
    lines = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue().encode()


def encoder_tensors(
    package: Path, *, beginning: str, named: str | None, public_key: str | None = None
) -> dict[str, Any]:
    """The tensors of a package whose names begin with `beginning`, with `named` in its place.

    Raises:
        SignatureRefused, ProtocolError: the package is not what was signed.
        ConfigError: no tensor's name begins so.
    """
    verify_package(package, public_key=public_key)
    tensors = tensors_from_bytes((package / MODEL).read_bytes())
    put = beginning if named is None else named
    found = {
        put + name.removeprefix(beginning): array
        for name, array in tensors.items()
        if name.startswith(beginning)
    }
    if not found:
        raise ConfigError(
            f"--begin: expected the beginning of a tensor's name, found {beginning!r}; the model "
            f"has {', '.join(sorted(tensors)[:6])}..."
        )
    return found
