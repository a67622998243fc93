"""Envelopes as Flower records and back: one record of bytes, whatever the model's shape."""

from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from google.protobuf.message import DecodeError

from fedward_common.canonical import sha256_hex
from fedward_common.channel.blobs import INLINE_BYTES, SUFFIX
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


def object_ids(envelope: Envelope) -> frozenset[str]:
    """The ids (SHA-256) of every Flower object that carries `envelope`, without the message's own,
    and the digest of the tree that they form.

    Flower names objects by their content, so a gateway that lets only these ids out lets only these
    bytes out. The tree travels apart from the objects: without its digest a worker could write
    with the order and the repetition of ids.
    """
    records = to_records(envelope)
    tree = ObjectTree(children=[get_object_tree(records)])
    return frozenset({*get_all_nested_objects(records), tree_sha256(tree)})


def manifests_of_object(content: bytes) -> dict[str, bytes]:
    """The manifests of blobs in a record's object, by their names."""
    if SUFFIX.encode() not in content or not content.startswith(b"ConfigRecord"):
        return {}
    try:
        record = ConfigRecord.inflate(content)
    except (ValueError, TypeError, LookupError, AttributeError, DecodeError):
        return {}  # SuperNode refuses it
    return {
        name.removeprefix(BLOB): value
        for name, value in record.items()
        if name.startswith(BLOB) and name.endswith(SUFFIX) and isinstance(value, bytes)
    }


def in_order(tree: ObjectTree) -> ObjectTree:
    """`tree` with the children of each node in the order of their ids.

    Flower's stores give siblings back in any order; here equal trees get equal bytes.
    """
    children = sorted(map(in_order, tree.children), key=lambda child: child.object_id)
    return ObjectTree(object_id=tree.object_id, children=children)


def tree_sha256(tree: ObjectTree) -> str:
    """The digest of everything below the root of `tree`: ids, nesting and repetitions."""
    below = in_order(ObjectTree(children=tree.children))
    return sha256_hex(below.SerializeToString(deterministic=True))
