from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlobChunk(_message.Message):
    __slots__ = ("number", "content")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    number: int
    content: bytes
    def __init__(self, number: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class BlobWanted(_message.Message):
    __slots__ = ("study", "id", "have")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    study: str
    id: str
    have: bytes
    def __init__(self, study: _Optional[str] = ..., id: _Optional[str] = ..., have: _Optional[bytes] = ...) -> None: ...

class BlobUp(_message.Message):
    __slots__ = ("manifest", "chunk")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    chunk: BlobChunk
    def __init__(self, manifest: _Optional[bytes] = ..., chunk: _Optional[_Union[BlobChunk, _Mapping]] = ...) -> None: ...

class BlobDown(_message.Message):
    __slots__ = ("chunk", "have", "whole", "refused")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    chunk: BlobChunk
    have: bytes
    whole: bool
    refused: str
    def __init__(self, chunk: _Optional[_Union[BlobChunk, _Mapping]] = ..., have: _Optional[bytes] = ..., whole: bool = ..., refused: _Optional[str] = ...) -> None: ...

class BlobOrder(_message.Message):
    __slots__ = ("study", "offers", "senders", "max_bytes")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    study: str
    offers: _containers.RepeatedCompositeFieldContainer[BlobOffer]
    senders: _containers.RepeatedScalarFieldContainer[str]
    max_bytes: int
    def __init__(self, study: _Optional[str] = ..., offers: _Optional[_Iterable[_Union[BlobOffer, _Mapping]]] = ..., senders: _Optional[_Iterable[str]] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class BlobOffer(_message.Message):
    __slots__ = ("manifest", "sites")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, manifest: _Optional[bytes] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class BlobArrived(_message.Message):
    __slots__ = ("site", "id")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    site: str
    id: str
    def __init__(self, site: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...
