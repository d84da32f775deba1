"""Seeds as a function of what they are for, never of a process's or a worker's state."""

import hashlib
import struct


def mixed_seed(*numbers: int) -> int:
    """Mix integers, such as (seed, epoch, sample), into one seed of 63 bits; the same on every machine."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
