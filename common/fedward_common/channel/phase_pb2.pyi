from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PhaseBlob(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class PhaseStep(_message.Message):
    __slots__ = ("number", "header", "blobs")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    number: int
    header: bytes
    blobs: _containers.RepeatedCompositeFieldContainer[PhaseBlob]
    def __init__(self, number: _Optional[int] = ..., header: _Optional[bytes] = ..., blobs: _Optional[_Iterable[_Union[PhaseBlob, _Mapping]]] = ...) -> None: ...

class PhaseUp(_message.Message):
    __slots__ = ("join", "answer", "blob")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    join: str
    answer: PhaseStep
    blob: str
    def __init__(self, join: _Optional[str] = ..., answer: _Optional[_Union[PhaseStep, _Mapping]] = ..., blob: _Optional[str] = ...) -> None: ...

class PhaseDown(_message.Message):
    __slots__ = ("step", "ended", "refused", "blob")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    step: PhaseStep
    ended: bool
    refused: str
    blob: int
    def __init__(self, step: _Optional[_Union[PhaseStep, _Mapping]] = ..., ended: bool = ..., refused: _Optional[str] = ..., blob: _Optional[int] = ...) -> None: ...

class PhaseOrder(_message.Message):
    __slots__ = ("open", "step", "sites")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    open: str
    step: PhaseStep
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, open: _Optional[str] = ..., step: _Optional[_Union[PhaseStep, _Mapping]] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class PhaseEvent(_message.Message):
    __slots__ = ("site", "present", "answer")
    SITE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    site: str
    present: bool
    answer: PhaseStep
    def __init__(self, site: _Optional[str] = ..., present: bool = ..., answer: _Optional[_Union[PhaseStep, _Mapping]] = ...) -> None: ...
