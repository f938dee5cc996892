"""Bytes that may come from anyone: a cursor that never reads past their end, and numbers of variable length."""

Buffer = bytes | bytearray | memoryview

__all__ = ["Buffer", "CodecError", "Reader", "varint"]

_LONGEST_VARINT = 9


class CodecError(ValueError):
    """A payload can't be decoded: damaged, of another version, for another model, or forged.

    Example:
        >>> from sparse_plugins.wire.payload import decode
        >>> decode(b"not a payload", like={})
        Traceback (most recent call last):
        sparse_plugins.wire.reader.CodecError: a payload has at least 39 bytes, this has 13: ...
    """


def varint(number: int) -> bytes:
    r"""A number in as few bytes as it needs: seven bits to a byte, lowest first, the top bit set on all but the last.

    Args:
        number: 0 or more, below 2**63.

    Returns:
        1 to 9 bytes.

    Example:
        >>> varint(5), varint(300)
        (b'\x05', b'\xac\x02')
    """
    septets = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(septet | 0x80 for septet in septets[:-1]), septets[-1]])


class Reader:
    """Reads a buffer from front to back.

    Args:
        buffer: What to read; it is not copied.

    Example:
        >>> reader = Reader(varint(300) + b"rest")
        >>> reader.varint(1000, "count"), bytes(reader.take(4)), reader.left
        (300, b'rest', 0)
    """

    def __init__(self, buffer: Buffer) -> None:
        self._view, self._at = memoryview(buffer).cast("B"), 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._view) - self._at

    def take(self, size: int) -> memoryview:
        """The next `size` bytes.

        Raises:
            CodecError: If there are fewer.
        """
        if size > self.left:
            raise CodecError(f"{size} bytes are due and {self.left} are left: the payload was cut off or forged.")
        self._at += size
        return self._view[self._at - size : self._at]

    def byte(self) -> int:
        """The next byte as a number.

        Raises:
            CodecError: If there is none.
        """
        return self.take(1)[0]

    def varint(self, most: int, what: str) -> int:
        """The next number of variable length.

        Args:
            most: The largest that makes sense here.
            what: What it is, for the message.

        Returns:
            A number in [0, most].

        Raises:
            CodecError: If it is larger, or has no end.
        """
        number = 0
        for place in range(_LONGEST_VARINT):
            byte = self.byte()
            number |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                break
        else:
            number = 1 << 63
        if number > most:
            raise CodecError(f"the {what} is {number}, but at most {most} is possible here.")
        return number
