"""The models that the coordinator offers this site, as values: every word of them is checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedward_common.channel import channel_pb2 as wire
from fedward_common.channel.refusals import Refusal
from fedward_common.channel.routes import CallRefused
from fedward_common.ids import DIGEST, LABEL
from fedward_common.model_package import MANIFEST, MAX_BYTES

MAX_OFFERS: Final = 1000
RUN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOffer:
    """A model package: its run, its study, and the size of each of its files."""

    run: str
    study: str
    study_id: str
    model_sha256: str
    files: Mapping[str, int]


def model_offers(reply: wire.ListModelsReply) -> tuple[ModelOffer, ...]:
    """The offers in a reply.

    Raises:
        CallRefused: MALFORMED. A name from there becomes a file's, so one that is not of the form
            that names have ends the whole list.
    """
    offers = tuple(
        ModelOffer(
            run=entry.run,
            study=entry.study,
            study_id=entry.study_id,
            model_sha256=entry.model_sha256,
            files=dict(entry.files),
        )
        for entry in reply.models
    )
    if len(offers) > MAX_OFFERS or not all(map(_in_order, offers)):
        raise CallRefused(Refusal.MALFORMED, "expected offers of model packages, found others")
    return offers


def _in_order(offer: ModelOffer) -> bool:
    return (
        RUN.fullmatch(offer.run) is not None
        and re.fullmatch(DIGEST, offer.study) is not None
        and re.fullmatch(LABEL, offer.study_id) is not None
        and re.fullmatch(DIGEST, offer.model_sha256) is not None
        and MANIFEST in offer.files
        and all(0 < size <= MAX_BYTES.get(name, 0) for name, size in offer.files.items())
    )
