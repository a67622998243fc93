"""Where a model looked: Grad-CAM and integrated gradients (Captum), as a picture with its words."""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedward_client.data.dicom.pixels import FloatArray
from fedward_client.predict.package import Origin, Predictor
from fedward_common.errors import ConfigError
from fedward_common.study.imaging import ImageMasks

Method = Literal["grad-cam", "integrated-gradients"]
STEPS: Final = 32
SMALLEST_SIDE: Final = 512
Picture = npt.NDArray[np.uint8]


def attribution(
    predictor: Predictor, features: FloatArray, *, target: int, method: Method
) -> FloatArray:
    """How much each pixel of the study's size spoke for class `target`, in [0, 1].

    Grad-CAM on the last convolution (Selvaraju et al. 2017); integrated gradients from a dark
    image (Sundararajan et al. 2017), absolute values.

    Raises:
        ConfigError: a model of structures, or one without the layer that the method needs.
    """
    from captum.attr import IntegratedGradients, LayerGradCam  # noqa: PLC0415 - an extra

    data, model = predictor.data, predictor.model
    if isinstance(data, ImageMasks):
        raise ConfigError("explain: expected a model of classes, found one of structures")
    chosen = None if len(predictor.names) == 1 else target
    inputs = torch.from_numpy(features[None]).requires_grad_(True)
    if method == "integrated-gradients":
        found = IntegratedGradients(model).attribute(
            inputs, baselines=torch.full_like(inputs, -1.0), target=chosen, n_steps=STEPS
        )
        map_ = found.detach().abs().reshape(1, 1, *data.size)
    else:
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        if not layers:
            raise ConfigError("explain: expected a convolutional network for grad-cam, found none")
        found = LayerGradCam(model, layers[-1]).attribute(
            inputs, target=chosen, relu_attributions=True
        )
        mode = "trilinear" if data.depth else "bilinear"
        map_ = functional.interpolate(found.detach(), size=data.size, mode=mode)
    values: FloatArray = map_[0, 0].numpy().astype(np.float32)
    peak = float(values.max())
    return values / np.float32(peak) if peak > 0 else values


def overlay(features: FloatArray, heat: FloatArray, lines: list[str], *, depth: int) -> Picture:
    """The image in grey with `heat` in red over it and `lines` beneath: [rows, columns, 3].

    Of a volume the slice in which most was found.
    """
    grey = (features.reshape(heat.shape) + 1.0) / 2.0
    if depth:
        best = int(heat.reshape(depth, -1).sum(axis=1).argmax())
        grey, heat = grey[best], heat[best]
    red = np.clip(grey * (1.0 - 0.6 * heat) + 0.6 * heat, 0.0, 1.0)
    rest = np.clip(grey * (1.0 - 0.6 * heat), 0.0, 1.0)
    return captioned((np.stack([red, rest, rest], axis=-1) * 255).astype(np.uint8), lines)


def captioned(picture: Picture, lines: list[str]) -> Picture:
    """`picture` enlarged to at least SMALLEST_SIDE columns, with `lines` beneath it."""
    from PIL import Image, ImageDraw  # noqa: PLC0415 - an extra

    scale = max(1, -(-SMALLEST_SIDE // picture.shape[1]))
    large = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
    band = np.zeros((14 * len(lines) + 6, large.shape[1], 3), dtype=np.uint8)
    image = Image.fromarray(np.concatenate([large, band]))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((4, large.shape[0] + 3 + 14 * number), line, fill=(255, 255, 255))
    return np.asarray(image)


def png(picture: Picture, origin: Origin) -> bytes:
    """The bytes of a PNG whose text says where the picture comes from."""
    from io import BytesIO  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415 - an extra
    from PIL.PngImagePlugin import PngInfo  # noqa: PLC0415

    facts = PngInfo()
    for name, value in (*origin.facts.items(), ("Description", origin.words)):
        facts.add_text(name, value)
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=facts)
    return buffer.getvalue()
