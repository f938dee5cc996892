"""What a message between a Flower server and its clients holds beside the user's records. Needs Flower and NumPy.

The payload travels as an `Array` of its own serialization type, in place of the model's arrays: whoever takes it for
an ordinary one is told so by Flower. Orders stand beside it in a `ConfigRecord`.
"""

import dataclasses
import functools
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_plugins.missing import explain_import_error
from sparse_plugins.wire import NOT_PRUNED
from sparse_plugins.wire.markers import is_pruned

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
except ImportError as error:
    raise explain_import_error(error, "sparse_plugins.fed.flower", ("flwr",), "'sparse-plugins[flower]'") from error

__all__ = [
    "FORMAT",
    "GROW",
    "ORDERS",
    "SETTLED",
    "Layout",
    "Spec",
    "arrays_in",
    "check_format",
    "is_call_for_masks",
    "packed_masks",
    "payload_in",
    "payload_record",
    "unpacked_masks",
]

ORDERS = "sparse_plugins"  # the name of our record in a message
SETTLED = f"{ORDERS}.settled"
GROW = "query.grow"
FORMAT = 1
_STYPE, _NUMPY = "sparse_plugins.wire", "numpy.ndarray"  # the latter is Flower's
_PAYLOAD = "payload"

NDArray = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which arrays a model has, in the order of its `ArrayRecord`.

    Attributes:
        sent: Name, shape and dtype of each array as it travels.
        dtypes: Dtypes in which clients and the user's server see them; JAX has no integers of 64 bits.

    Example:
        >>> layout = Layout.of({"w": np.zeros((2, 3), np.float32), "steps": np.zeros((), np.int64)})
        >>> layout.sent["steps"].dtype.name, Layout.from_text(layout.to_text()) == layout
        ('int32', True)
    """

    sent: dict[str, Spec]
    dtypes: dict[str, np.dtype]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray], wide: bool = False) -> "Layout":
        """The layout of a model.

        Args:
            arrays: Its arrays by name.
            wide: Whether JAX computes with 64 bits.

        Raises:
            ValueError: If it has floats of 64 bits and JAX does not, or a dtype that NumPy cannot save.
        """
        for name, array in arrays.items():
            if array.dtype.kind == "V":
                raise ValueError(
                    f"array {name!r} arrives as {array.dtype}, because Flower sends arrays as NumPy saves them, and "
                    "NumPy has no name for a dtype such as bfloat16: cast the model to float32 or float16."
                )
            if array.dtype in (np.float64, np.complex128) and not wide:
                raise ValueError(
                    f"array {name!r} has dtype {array.dtype}, which JAX keeps only with jax_enable_x64; cast the "
                    "model to float32, or enable it on the server."
                )
        narrow: dict[Any, Any] = (
            {} if wide else {np.dtype(np.int64): np.dtype(np.int32), np.dtype(np.uint64): np.dtype(np.uint32)}
        )
        dtypes = {name: array.dtype for name, array in arrays.items()}
        sent = {name: Spec(x.shape, np.dtype(narrow.get(x.dtype, x.dtype))) for name, x in arrays.items()}
        return cls(sent, dtypes)

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> "Layout":
        """The same arrays in other shapes."""
        return Layout({name: Spec(shapes[name], spec.dtype) for name, spec in self.sent.items()}, self.dtypes)

    def to_text(self) -> str:
        """As JSON."""
        rows = [[name, list(spec.shape), spec.dtype.name, self.dtypes[name].name] for name, spec in self.sent.items()]
        return json.dumps(rows, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "Layout":
        """From what `to_text` wrote.

        Raises:
            ValueError: If it is not that.
        """
        try:
            rows = [
                (name, tuple(shape), np.dtype(sent), np.dtype(dtype)) for name, shape, sent, dtype in json.loads(text)
            ]
        except (ValueError, TypeError) as error:
            raise ValueError(f"the layout of the model can't be read: {error}") from error
        return cls(
            {name: Spec(shape, sent) for name, shape, sent, _ in rows}, {name: dtype for name, _, _, dtype in rows}
        )

    def record(self, values: Mapping[str, Any]) -> ArrayRecord:
        """An ordinary `ArrayRecord` of dense arrays, in the model's order and dtypes."""
        return ArrayRecord(
            {name: _written(_as(np.asarray(values[name]), dtype)) for name, dtype in self.dtypes.items()}
        )

    def read(self, record: ArrayRecord, whose: str, rounds: bool = False) -> dict[str, NDArray]:
        """Arrays of an ordinary record, in the dtypes in which they travel; they may be views that can't be written to.

        Args:
            record: The record.
            whose: What made it, for messages.
            rounds: Whether integers may come as floats, as averages of them do.

        Raises:
            ValueError: If its names or shapes are not those of the model, or a dtype does not fit.
        """
        if set(record) != set(self.sent):
            extra, absent = sorted(set(record) - set(self.sent)), sorted(set(self.sent) - set(record))
            raise ValueError(
                f"{whose} has other arrays than the server's model: {extra} are not in it, {absent} are missing. Use "
                "the same names on both sides."
            )
        return {name: self._fitting(record[name], name, whose, rounds) for name in self.sent}

    def _fitting(self, array: Array, name: str, whose: str, rounds: bool) -> NDArray:
        value, spec = _read(array), self.sent[name]
        casting: Any = "unsafe" if rounds else "same_kind"
        if value.shape != spec.shape or not np.can_cast(value.dtype, spec.dtype, casting):
            raise ValueError(
                f"array {name!r} of {whose} has shape {value.shape} and dtype {value.dtype}, in the server's model it "
                f"has shape {spec.shape} and dtype {self.dtypes[name]}: the model differs between server and client. "
                "If the server has client_widths, a node builds its model from the shapes of the arrays it is given."
            )
        return _as(value, spec.dtype)


def _as(value: NDArray, dtype: np.dtype) -> NDArray:
    """In another dtype; averages of integers are rounded to the nearest."""
    if np.issubdtype(dtype, np.integer) and np.issubdtype(value.dtype, np.floating):
        value = np.asarray(np.rint(value))  # NumPy makes numbers of arrays without axes
    return value.astype(dtype, copy=False)


def _written(value: NDArray) -> Array:
    """What `Array(value)` is, with one copy of the values in place of three.

    Example:
        >>> value = np.arange(6, dtype=np.float32).reshape(2, 3)
        >>> _written(value).data == Array(value).data, _read(_written(value)).tolist()
        (True, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    """
    if not (value.dtype.isnative and value.dtype.kind in "biufc" and value.flags.c_contiguous):
        return Array(value)
    data = b"".join((_front(value.shape, value.dtype.str), value.ravel().view(np.uint8).data))
    return Array(value.dtype.name, value.shape, _NUMPY, data)


@functools.lru_cache(maxsize=4096)
def _front(shape: tuple[int, ...], dtype: str) -> bytes:
    """What stands in front of the values of an array by rows, in NumPy's format."""
    front = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(front, header)
    return front.getvalue()


def _read(array: Array) -> NDArray:
    """What `array.numpy()` is, without a copy where its bytes are those of an array by rows."""
    try:
        dtype, shape = np.dtype(array.dtype), tuple(array.shape)
        front = _front(shape, dtype.str) if dtype.kind in "biufc" else b""
    except (TypeError, ValueError):
        return array.numpy()  # which says what is wrong
    count = math.prod(shape)
    is_plain = front and array.stype == _NUMPY and array.data.startswith(front)
    if not is_plain or len(array.data) != len(front) + count * dtype.itemsize or not count:
        return array.numpy()
    return np.frombuffer(array.data, dtype, count, len(front)).reshape(shape)


def payload_record(payload: bytes) -> ArrayRecord:
    """A payload as a record."""
    return ArrayRecord({_PAYLOAD: Array("uint8", (len(payload),), _STYPE, payload)})


def payload_in(record: ArrayRecord) -> bytes | None:
    """The payload in a record; None if it holds ordinary arrays."""
    array = record.get(_PAYLOAD)
    return array.data if array is not None and array.stype == _STYPE and len(record) == 1 else None


def arrays_in(content: RecordDict) -> tuple[str, ArrayRecord] | None:
    """Name and value of the one `ArrayRecord` of a message; None if it has none or several."""
    records = list(content.array_records.items())
    return records[0] if len(records) == 1 else None


def check_format(orders: ConfigRecord) -> None:
    """Raises if the other side speaks another version."""
    if orders.get("format") != FORMAT:
        raise ValueError(
            f"the other side speaks version {orders.get('format')!r} of this protocol, this side version {FORMAT}: "
            "install the same release of sparse-plugins on both."
        )


def is_call_for_masks(message: Message) -> bool:
    """Whether a client says that it holds no masks on which a message builds."""
    if message.has_error():
        return False
    orders = message.content.config_records.get(ORDERS)
    return orders is not None and orders.get("needs") == "masks"


def packed_masks(masks: Mapping[str, Any]) -> ArrayRecord:
    """Masks as bits; layers that stay dense have none.

    Example:
        >>> record = packed_masks({"w": np.array([[1, 0, 1]], np.uint8), "b": NOT_PRUNED})
        >>> like = {"w": Spec((1, 3), np.dtype("float32")), "b": Spec((3,), np.dtype("float32"))}
        >>> unpacked_masks(record, like)["w"].tolist(), unpacked_masks(record, like)["b"] is NOT_PRUNED
        ([[1, 0, 1]], True)
    """
    return ArrayRecord(
        {name: Array(np.packbits(np.asarray(mask) != 0)) for name, mask in masks.items() if is_pruned(mask)}
    )


def unpacked_masks(record: ArrayRecord, like: Mapping[str, Spec]) -> dict[str, Any]:
    """uint8 masks from what `packed_masks` made.

    Raises:
        ValueError: If a mask is not that of the model's array.
    """
    return {
        name: _unpacked(_read(record[name]), spec, name) if name in record else NOT_PRUNED
        for name, spec in like.items()
    }


def _unpacked(bits: NDArray, spec: Spec, name: str) -> NDArray:
    size = int(np.prod(spec.shape))
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"the mask of {name!r} does not belong to an array of shape {spec.shape}.")
    return np.unpackbits(bits, count=size).reshape(spec.shape)
