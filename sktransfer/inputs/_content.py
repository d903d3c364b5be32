"""Reading of an image in any form to its content: encoded bytes or an array."""

import os
from collections.abc import Mapping
from functools import singledispatch

import numpy as np
import PIL.Image
import torch

from sktransfer.inputs._decoding import checked_array, pil_array
from sktransfer.inputs._encoded import encoded_bytes, is_encoded
from sktransfer.inputs._reader import is_missing


@singledispatch
def image_content(sample) -> bytes | np.ndarray:
    """Return the content of an image: encoded bytes or an array of pixel values.

    Support for further types of images is added with ``image_content.register``.
    """
    if hasattr(sample, "__array__"):
        return image_content(np.asarray(sample))
    if is_encoded(sample):
        return encoded_bytes(sample, "image")
    if is_missing(sample):
        raise ValueError(f"it is missing: {sample} instead of an image or its path")
    raise ValueError(f"it is of type {type(sample).__name__}")


@image_content.register(str)
@image_content.register(os.PathLike)
@image_content.register(bytes)
@image_content.register(bytearray)
@image_content.register(memoryview)
@image_content.register(Mapping)
def _read_encoded(sample) -> bytes:
    return encoded_bytes(sample, "image")


@image_content.register(torch.Tensor)
def _read_tensor(tensor) -> np.ndarray:
    return image_content(to_numpy(tensor))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


image_content.register(np.ndarray)(checked_array)
image_content.register(PIL.Image.Image)(pil_array)
