"""A model as ONNX, proven to answer as torch does."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fedward_client.predict.package import Predictor
from fedward_common.errors import DataError
from fedward_common.study.inputs import input_size
from fedward_common.trust.private_files import write_atomically

TOLERANCE: Final = 1e-4
PROBES: Final = 3


def export_onnx(predictor: Predictor, path: Path) -> float:
    """Writes the model to `path`: one flat record in, its outputs out; the largest difference seen.

    Its metadata name study, model and that it is not for clinical use. Compared with torch on
    made-up inputs by onnxruntime.

    Raises:
        DataError: the two differ by more than 1e-4; nothing is written.
    """
    import onnx  # noqa: PLC0415 - an extra
    import onnxruntime  # noqa: PLC0415 - an extra

    inputs = input_size(predictor.data)
    generator = torch.Generator().manual_seed(1)
    probes = [2.0 * torch.rand((1, inputs), generator=generator) - 1.0 for _ in range(PROBES)]
    buffer = BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter: a hundred times faster than the newer one, and these networks have
        # no branch that it could miss; the comparison below would find one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            predictor.model,
            (probes[0],),
            buffer,  # type: ignore[arg-type]  # the stub leaves out what the tracer takes
            dynamo=False,
            input_names=["record"],
        )
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(proto, {**predictor.origin.facts, "note": predictor.origin.words})
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    with torch.inference_mode():
        for probe in probes:
            found = session.run(None, {session.get_inputs()[0].name: probe.numpy()})[0]
            worst = max(worst, float(np.abs(found - predictor.model(probe).numpy()).max()))
    if not worst <= TOLERANCE:
        raise DataError(f"ONNX: expected torch's outputs to 1e-4, found {worst:.1e} more")
    write_atomically(path, content)
    return worst
