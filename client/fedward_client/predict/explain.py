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
from fedward_common.study.image_encoding import colours
from fedward_common.study.imaging import ImageMasks, Pictures

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
        flat = found.detach().abs().reshape(1, -1, *_place(data))
        map_ = flat.sum(dim=1, keepdim=True)  # over the colours
    else:
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        if not layers:
            raise ConfigError("explain: expected a convolutional network for grad-cam, found none")
        found = LayerGradCam(model, layers[-1]).attribute(
            inputs, target=chosen, relu_attributions=True
        )
        mode = "trilinear" if data.depth else "bilinear"
        map_ = functional.interpolate(found.detach(), size=_place(data), mode=mode)
    values: FloatArray = map_[0, 0].numpy().astype(np.float32)
    peak = float(values.max())
    return values / np.float32(peak) if peak > 0 else values


def overlay(features: FloatArray, heat: FloatArray, lines: list[str], *, data: Pictures) -> Picture:
    """The image with `heat` in red over it and `lines` beneath: [rows, columns, 3].

    Of a volume the slice in which most was found.
    """
    number = 0
    if data.depth:
        number = int(heat.reshape(data.depth, -1).sum(axis=1).argmax())
        heat = heat[number]
    shown = as_picture(features, data, number=number) * (1.0 - 0.6 * heat[..., None])
    shown[..., 0] += 0.6 * heat
    return captioned((np.clip(shown, 0.0, 1.0) * 255).astype(np.uint8), lines)


def as_picture(features: FloatArray, data: Pictures, *, number: int) -> FloatArray:
    """Flat features in [-1, 1] as [rows, columns, 3] in [0, 1]; of a volume slice `number`."""
    pixels = (features.reshape(data.size) + 1.0) / 2.0
    if colours(data):
        return np.moveaxis(pixels, 0, -1).astype(np.float32)
    flat = pixels[number] if data.depth else pixels
    return np.repeat(flat[..., None], 3, axis=-1).astype(np.float32)


def _place(data: Pictures) -> tuple[int, ...]:
    """The sides of an image, without its colours."""
    return data.size[1:] if colours(data) else data.size


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
