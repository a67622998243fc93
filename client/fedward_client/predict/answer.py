"""A model's answer about one image: files, objects for the PACS, and words."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset

from fedward_client.data.dicom.quiet import without_words
from fedward_client.predict.explain import Method, as_picture, attribution, captioned, overlay, png
from fedward_client.predict.objects import capture, report, segmentation
from fedward_client.predict.package import Predictor
from fedward_client.predict.subject import Subject, read_subject
from fedward_common.errors import ConfigError
from fedward_common.study.imaging import ImageMasks
from fedward_common.trust.private_files import write_private

METHODS: dict[str, Method] = {m: m for m in ("grad-cam", "integrated-gradients")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was made: `objects` for the PACS, `facts` for machines, `text` for people."""

    objects: tuple[Dataset, ...]
    facts: dict[str, Any]
    text: str


def answer(predictor: Predictor, image: Path, *, out: Path, explain: str | None = None) -> Answer:
    """The answer about the image in `image`, its files written to `out` (0600).

    Raises:
        DataError: an image that the model cannot be asked about.
        ConfigError: an unknown way to explain, or one that does not fit the model.
    """
    if explain is not None and explain not in METHODS:
        raise ConfigError(f"--explain: expected {' or '.join(METHODS)}, found {explain!r}")
    subject = read_subject(image, predictor.data)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    files: dict[str, Dataset] = {}
    facts: dict[str, Any] = dict(predictor.origin.facts)
    if isinstance(predictor.data, ImageMasks):
        if explain is not None:
            raise ConfigError("--explain: expected a model of classes, found one of structures")
        mask = subject.as_it_came(predictor.mask(subject.features))
        layers = mask if mask.ndim == 3 else mask[None]
        files["segmentation.dcm"] = segmentation(
            subject.sources, layers, predictor.names, predictor.origin
        )
        counted = {n: int((mask == i).sum()) for i, n in enumerate(predictor.names, start=1)}
        facts["voxels"] = counted
        said = ", ".join(f"{name} {count} voxels" for name, count in counted.items())
    else:
        scores = predictor.scores(subject.features)
        facts["scores"] = scores
        said = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        files |= _of_classes(predictor, subject, scores, said)
        if explain is not None:
            target = max(range(len(scores)), key=list(scores.values()).__getitem__)
            heat = attribution(predictor, subject.features, target=target, method=METHODS[explain])
            lines = [f"{explain} for {predictor.names[target]}", said, predictor.origin.words]
            seen = overlay(subject.features, heat, lines, data=predictor.data)
            write_private(out / f"{explain}.png", png(seen, predictor.origin))
            files[f"{explain}.dcm"] = capture(subject.sources[0], seen, predictor.origin, number=2)
    for name, dataset in files.items():
        buffer = BytesIO()
        with without_words():
            dcmwrite(buffer, dataset, enforce_file_format=True)
        write_private(out / name, buffer.getvalue())
    facts["files"] = sorted(files)
    return Answer(
        objects=tuple(files.values()), facts=facts, text=f"{said}\n{predictor.origin.words}"
    )


def _of_classes(
    predictor: Predictor, subject: Subject, scores: dict[str, float], said: str
) -> dict[str, Dataset]:
    """The report, and the image as the model saw it with what it said beneath."""
    data = predictor.data
    shown = as_picture(subject.features, data, number=data.depth // 2)
    picture = captioned((shown * 255.0).astype(np.uint8), [said, predictor.origin.words])
    return {
        "report.dcm": report(subject.sources, scores, predictor.origin),
        "capture.dcm": capture(subject.sources[0], picture, predictor.origin),
    }
