"""Which recordings and which days are held out.

The splits answer two questions separately. *Unseen*: how good is the model on a song that it has never seen? One tenth
of the recordings, chosen by the hash of their features, so that a recording keeps its split when the data grows, and a
champion is never tested on what it was trained on; and songs that came out after training ended. *Seen*: how good is it
on the later days of songs that it knows?
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test-seen", "test-unseen")
# Shares of the recordings that are held out, and of the days (the last ones) that training does not see.
TEST_SONGS = 0.1
VALIDATION_SONGS = 0.1
LATER_DAYS = 0.2


def hashes(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The hash of each recording, uint64[recordings]; ``vectors`` are its raw features, float32[recordings, 13]."""
    # -0.0 and 0.0 are one number, and must be one recording.
    rows = (vectors + np.float32(0)).astype("<f4")
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def first_later_day(days: NDArray[np.int32]) -> int | None:
    """The first of the days that training does not see; ``days`` are distinct and ascending. None: it sees all."""
    return int(days[-max(1, round(LATER_DAYS * len(days)))]) if len(days) > 1 else None


def split_of(hashed: NDArray[np.uint64], early: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The split (an index of SPLITS) of the rows of each recording, uint8[recordings, 2]: earlier days, later days.

    ``early``: has the recording a row on the earlier days?
    """
    place = hashed / 2.0**64
    train, validation, seen, unseen = range(len(SPLITS))
    # A recording without an early row came out after the training days.
    split = np.stack([np.full(len(place), train), np.where(early, seen, unseen)], axis=1)
    split[place < TEST_SONGS + VALIDATION_SONGS] = validation
    split[place < TEST_SONGS] = unseen
    return split.astype(np.uint8)
