"""Tagged unions that later parts extend by registration, so that StudySpec v1 never changes shape.

A variant is a frozen pydantic model with a `kind` literal. Registering it makes the kind known to
the parser on both sides; a study that names an unregistered kind is refused.
"""

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)


class Strict(BaseModel):
    """A frozen value that refuses unknown keys and wrong types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Extensible(Strict):
    """A value of format v1 that later versions gave more fields.

    A field named in `added` does not appear in the canonical form while it has its default, so the
    digest of every study that was signed before stays what it was; a reader that does not know the
    field refuses a study that uses it.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        unused = {name for name in self.added if getattr(self, name) == fields[name].default}
        return {name: value for name, value in values.items() if name not in unused}


class Variant(Extensible):
    """One variant of a tagged union; subclasses fix `kind` to a literal."""

    kind: str


class TaskSpec(Variant):
    """What is learned: fixes loss, label mapping and metrics."""

    variants: ClassVar[dict[str, type[Variant]]] = {}


class DataSpec(Variant):
    """What a site's records look like and how they become tensors."""

    variants: ClassVar[dict[str, type[Variant]]] = {}

    @property
    def is_genomic(self) -> bool:
        """Whether they are of somebody's genome, so that a study has to say so."""
        return False


class DpSpec(Variant):
    """The parameters that decide the privacy guarantee."""

    variants: ClassVar[dict[str, type[Variant]]] = {}


class ReleaseSpec(Variant):
    """One more thing that leaves a site besides the model updates, and what it costs."""

    variants: ClassVar[dict[str, type[Variant]]] = {}


def register(variant: type[Variant]) -> type[Variant]:
    """Makes `variant` known to the union it derives from; usable as a class decorator."""
    union = next(base for base in variant.__mro__ if "variants" in base.__dict__)
    kind = variant.model_fields["kind"].default
    union.__dict__["variants"][kind] = variant
    return variant


def _chooser(union: type[Variant]) -> BeforeValidator:
    def choose(value: Any) -> Any:
        variants: dict[str, type[Variant]] = union.__dict__["variants"]
        if isinstance(value, union):
            return value
        if not isinstance(value, dict) or "kind" not in value:
            raise ValueError(f"expected a table with a 'kind', one of {sorted(variants)}")
        variant = variants.get(value["kind"]) if isinstance(value["kind"], str) else None
        if variant is None:
            raise ValueError(f"unknown kind {value['kind']!r}, expected one of {sorted(variants)}")
        return variant.model_validate(value)

    return BeforeValidator(choose)


AnyTask = Annotated[SerializeAsAny[TaskSpec], _chooser(TaskSpec)]
AnyData = Annotated[SerializeAsAny[DataSpec], _chooser(DataSpec)]
AnyDp = Annotated[SerializeAsAny[DpSpec], _chooser(DpSpec)]
AnyRelease = Annotated[SerializeAsAny[ReleaseSpec], _chooser(ReleaseSpec)]
