"""Arrays in overlays of other people: their headers may state any shape."""

import io

import numpy as np
import pytest

from lumina_cli.core.dataset.shard_encoders import decode_npy
from lumina_cli.core.errors import LuminaError


def array_of(shape):
    """Return the bytes of a .npy file that states a shape and contains 16 values."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def archive():
    """Return the bytes of a .npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        array_of((10**15,)),
        array_of((10**30,)),
        array_of((-5,)),
        array_of((2**62, 4)),
        archive(),
        b"",
        b"x" * 50,
    ],
    ids=["petabytes", "no integer of C", "negative", "overflow", "npz", "empty", "text"],
)
def test_invalid_arrays_are_one_line(content):
    with pytest.raises(
        LuminaError, match=r"an overlay contains an invalid array \(.*recreate it with"
    ) as caught:
        decode_npy(content)
    assert "\n" not in str(caught.value)


def test_whole_arrays_are_read():
    assert decode_npy(array_of((4, 4))).shape == (4, 4)
