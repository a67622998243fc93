"""Envelopes as Flower records and back: one record of bytes, whatever the model's shape."""

from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedward_common.channel.blobs import INLINE_BYTES
from fedward_common.errors import ProtocolError
from fedward_common.wire import Envelope

HEADER: Final = "fedward"
BLOB: Final = "blob."
STYPE: Final = "fedward.bytes"


def to_records(envelope: Envelope) -> RecordDict:
    """The records that carry `envelope`; equal envelopes give records of equal object ids.

    Every object of a message is a request of its own at each of four processes, so what fits goes
    into one record with the header; a larger blob is an array, which Flower cuts into chunks.
    """
    inline: dict[str, bytes] = {"header": envelope.header}
    room = INLINE_BYTES - len(envelope.header)
    records = RecordDict()
    for name in sorted(envelope.blobs):
        data = bytes(envelope.blobs[name])
        if len(data) <= room:
            inline[BLOB + name] = data
            room -= len(data)
            continue
        array = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        records[BLOB + name] = ArrayRecord({"bytes": array})
    records[HEADER] = ConfigRecord(dict(inline))
    return records


def from_records(records: RecordDict) -> Envelope:
    """The envelope in `records`. Raises ProtocolError when they carry anything else."""
    blobs: dict[str, bytes] = {}
    header: object = None
    for name, record in records.items():
        if name == HEADER and isinstance(record, ConfigRecord):
            header = record.get("header")
            inline = {key: value for key, value in record.items() if key != "header"}
        elif name.startswith(BLOB) and isinstance(record, ArrayRecord) and set(record) == {"bytes"}:
            inline = {name: record["bytes"].data}
        else:
            raise ProtocolError("message: expected a Fedward envelope, found another record")
        for key, value in inline.items():
            blob = key.removeprefix(BLOB)
            if not key.startswith(BLOB) or not isinstance(value, bytes) or blob in blobs:
                raise ProtocolError("message: expected named blobs, each once, found another value")
            blobs[blob] = value
    if not isinstance(header, bytes):
        raise ProtocolError("message: expected a Fedward header, found none")
    return Envelope(header=header, blobs=blobs)
