"""Envelopes as Flower records and back: one bytes record per blob, whatever the model's shape."""

from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedward_common.errors import ProtocolError
from fedward_common.wire import Envelope

HEADER: Final = "fedward"
BLOB: Final = "blob."
STYPE: Final = "fedward.bytes"


def to_records(envelope: Envelope) -> RecordDict:
    """The records that carry `envelope`; equal envelopes give records of equal object ids."""
    records = RecordDict({HEADER: ConfigRecord({"header": envelope.header})})
    for name in sorted(envelope.blobs):
        data = envelope.blobs[name]
        array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        records[BLOB + name] = ArrayRecord({"bytes": array})
    return records


def from_records(records: RecordDict) -> Envelope:
    """The envelope in `records`. Raises ProtocolError when they carry anything else."""
    blobs: dict[str, bytes] = {}
    header: object = None
    for name, record in records.items():
        if name == HEADER and isinstance(record, ConfigRecord) and set(record) == {"header"}:
            header = record["header"]
        elif name.startswith(BLOB) and isinstance(record, ArrayRecord) and set(record) == {"bytes"}:
            blobs[name.removeprefix(BLOB)] = record["bytes"].data
        else:
            raise ProtocolError("message: expected a Fedward envelope, found another record")
    if not isinstance(header, bytes):
        raise ProtocolError("message: expected a Fedward header, found none")
    return Envelope(header=header, blobs=blobs)
