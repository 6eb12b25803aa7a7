"""Models as people write them with Pydantic, and what zod makes of its own; each is a schema that somebody's tool has."""

import json
import uuid
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from annotated_types import Len
from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ByteSize,
    ConfigDict,
    DirectoryPath,
    Field,
    HttpUrl,
    Json,
    JsonValue,
    NegativeInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    create_model,
)
from typing_extensions import TypedDict

_FOLDER = Path(__file__).parent.parent / "models" / "language" / "forms"

ZOD: dict[str, Any] = json.loads((_FOLDER / "zod_schemas.json").read_text())
"""Schemas by name, those of draft 7 with `_draft7` behind it."""


class Colour(StrEnum):
    """An enumeration of words."""

    red = "red"
    green = "green"


class Level(IntEnum):
    """An enumeration of numbers."""

    low = 1
    high = 2


class Circle(BaseModel):
    """One of a union."""

    kind: Literal["circle"]
    radius: Annotated[float, Field(gt=0, le=10)]


class Square(BaseModel):
    """Another one."""

    kind: Literal["square"] = "square"
    side: Annotated[float, Field(gt=0, lt=10)]


class Tree(BaseModel):
    """A recursive model."""

    name: Annotated[str, Field(max_length=6)]
    children: Annotated[list["Tree"], Field(max_length=2)] = []


class Chain(BaseModel):
    """A recursive model of one branch."""

    value: int
    next: "Chain | None" = None


class Address(BaseModel):
    """What is nested in others."""

    model_config = ConfigDict(extra="forbid")

    street: Annotated[str, Field(max_length=10)]
    city: Annotated[str, Field(max_length=10)] | None = None


_T = TypeVar("_T")


class Page(BaseModel, Generic[_T]):
    """A generic model."""

    items: Annotated[list[_T], Field(max_length=2)]
    total: Annotated[int, Field(ge=0)]


class Point(NamedTuple):
    """A named tuple."""

    x: int
    y: int = 0


class Options(TypedDict, total=False):
    """A typed dictionary."""

    verbose: bool
    depth: int


@dataclass
class Size:
    """A dataclass."""

    width: int
    height: int = 1


class Strict(BaseModel):
    """A model that forbids what it does not name."""

    model_config = ConfigDict(extra="forbid")

    a: int
    b: bool


class Loose(BaseModel):
    """A model that takes what it does not name."""

    model_config = ConfigDict(extra="allow")

    a: int


Short = Annotated[str, Field(max_length=8)]

_FIELDS: dict[str, Any] = {
    "string": Short,
    "bounded_string": Annotated[str, Field(min_length=2, max_length=5)],
    "pattern": Annotated[str, Field(pattern=r"^[a-z]{2,4}-\d+$", max_length=12)],
    "unanchored_pattern": Annotated[str, StringConstraints(pattern=r"\d\d", max_length=10)],
    "upper": Annotated[str, StringConstraints(to_upper=True, max_length=5)],
    "integer": int,
    "bounded_integer": Annotated[int, Field(ge=-5, lt=300)],
    "positive_int": PositiveInt,
    "negative_int": NegativeInt,
    "int64": Annotated[int, Field(ge=-(2**63), le=2**63 - 1)],
    "uint64": Annotated[int, Field(ge=0, lt=2**64)],
    "huge_default": Annotated[int, Field(ge=0, le=9)] | Literal[10**30],
    "number": Annotated[float, Field(ge=-1000, le=1000)],
    "positive_float": PositiveFloat,
    "unit_interval": Annotated[float, Field(gt=0, lt=0.1)],
    "probability": Annotated[NonNegativeFloat, Field(le=1)],
    "multiple": Annotated[int, Field(multiple_of=5, ge=0, le=1000)],
    "decimal": Decimal,
    "money": Annotated[Decimal, Field(max_digits=6, decimal_places=2)],
    "boolean": bool,
    "none": None,
    "optional": Short | None,
    "literal": Literal["a", "b", 3, True, None],
    "enum": Colour,
    "int_enum": Level,
    "date": date,
    "datetime": datetime,
    "aware": AwareDatetime,
    "time": time,
    "duration": timedelta,
    "uuid": uuid.UUID,
    "uuid4": UUID4,
    "url": HttpUrl,
    "any_url": AnyUrl,
    "ipv4": IPv4Address,
    "ipv6": IPv6Address,
    "network": Annotated[IPv4Network, WithJsonSchema({"type": "string", "format": "ipv4network", "maxLength": 9})],
    "path": Annotated[Path, WithJsonSchema({"type": "string", "format": "path", "maxLength": 9})],
    "directory": Annotated[
        DirectoryPath, WithJsonSchema({"type": "string", "format": "directory-path", "maxLength": 9})
    ],
    "secret": Annotated[SecretStr, Field(max_length=9)],
    "secret_bytes": Annotated[SecretBytes, Field(max_length=9)],
    "secret_date": Secret[date],
    "bytes": Annotated[bytes, Field(max_length=8)],
    "base64": Annotated[Base64Bytes, Field(max_length=8)],
    "byte_size": Annotated[ByteSize, WithJsonSchema({"type": "integer", "minimum": 0})],
    "email": Annotated[str, WithJsonSchema({"type": "string", "format": "email"})],
    "hostname": Annotated[str, WithJsonSchema({"type": "string", "format": "hostname"})],
    "json_string": Annotated[
        Json[list[int]], WithJsonSchema({"type": "string", "contentMediaType": "application/json", "maxLength": 9})
    ],
    "list": Annotated[list[int], Field(max_length=3)],
    "set": Annotated[set[int], Field(max_length=3)],
    "set_of_enum": Annotated[set[Colour], Field(min_length=1)],
    "frozenset": Annotated[frozenset[Literal["a", "b", "c"]], Field(max_length=3)],
    "tuple": tuple[int, Short],
    "tuple_of_any_length": Annotated[tuple[int, ...], Len(1, 3)],
    "named_tuple": Point,
    "record": dict[Short, int],
    "record_of_uuid": dict[uuid.UUID, bool],
    "record_of_enum": dict[Colour, int],
    "record_of_pattern": dict[Annotated[str, Field(pattern=r"^k\d$")], int],
    "record_of_int": dict[int, bool],
    "record_bounded": Annotated[dict[Short, bool], Field(min_length=2, max_length=4)],
    "record_of_models": dict[Short, Address],
    "nested": Address,
    "list_of_models": Annotated[list[Address], Field(max_length=2)],
    "discriminated": Annotated[Circle | Square, Field(discriminator="kind")],
    "undiscriminated": Circle | Square | None,
    "recursive": Tree,
    "chain": Chain,
    "generic": Page[Address],
    "generic_of_enum": Page[Colour],
    "typed_dict": Options,
    "dataclass": Size,
    "strict": Strict,
    "loose": Loose,
    "root_model": RootModel[Annotated[list[Short], Field(max_length=2)]],
    "adapter": Annotated[list[Point], Field(max_length=2)],
    "union_of_scalars": int | Short | bool | None,
    "json_value": Annotated[dict[Short, JsonValue], Field(max_length=2)],
}
_FOR_PYDANTIC_ONLY = {
    *("directory", "json_string", "base64", "network", "record_of_int", "record_of_pattern", "url", "any_url"),
    *("byte_size", "bytes", "secret_bytes", "email", "uuid4", "decimal", "money"),
}
"""Those whose fields ask for more than their schema says."""


@dataclass(frozen=True, slots=True)
class Person:
    """A schema that somebody wrote; `model` reads what fits it, where it asks for nothing that the schema does not say."""

    schema: dict[str, Any]
    model: type[BaseModel] | None = None


def people() -> dict[str, Person]:
    """Return all of them, by name: an object with the field `a` each."""
    every: dict[str, Person] = {}
    for name, kind in _FIELDS.items():
        model = create_model(f"Model_{name}", a=(kind, ...))
        every[f"pydantic_{name}"] = Person(model.model_json_schema(), None if name in _FOR_PYDANTIC_ONLY else model)
        if name in {"optional", "set", "discriminated", "nested", "date"}:
            model = create_model(f"Default_{name}", a=(kind | None, None), b=(int, 3))
            every[f"pydantic_{name}_by_default"] = Person(model.model_json_schema(), model)
    every["pydantic_recursive_root"] = Person(Tree.model_json_schema(), Tree)
    every["pydantic_openapi_root"] = Person(TypeAdapter(Size).json_schema())
    every |= {f"zod_{name}": Person(schema) for name, schema in ZOD.items() if not name.endswith("_draft7")}
    return every
