"""Weights in few bytes, for runs that are shared: 16 bits a number, or 8 bits and a scale for a stretch of a large matrix."""

import zipfile
from pathlib import Path

import numpy as np

from utils import InputError, replacing

IN_8_BITS = ("texture_basis",)  # layers whose kernels are: each row is a component of pictures, which have 8 bits too
LARGEST = 127  # of the numbers in 8 bits
STRETCH = 256  # numbers of a row that have one scale: colours, shares and distances differ a hundredfold in size


def save(network, path: Path) -> None:
    """Write the weights of a Keras model, in the order that Keras has them, to a file of numpy's, .npz.

    The array "3" is the fourth one, float16; or "3" is int8, and each of its stretches, multiplied by one number of "3.scale",
    float32, is a stretch of the fourth one.

    Raises:
        InputError: if a weight is not finite, or too large for 16 bits.
    """
    in_8_bits = {id(network.get_layer(name).kernel) for name in IN_8_BITS if name in {layer.name for layer in network.layers}}
    arrays = {}
    for number, variable in enumerate(network.weights):
        values = variable.numpy()
        if not np.abs(values).max(initial=0) <= np.finfo(np.float16).max:
            largest = np.finfo(np.float16).max
            raise InputError(f"{variable.path}: expected numbers of at most {largest}, found larger ones or nan; train again")
        if id(variable) in in_8_bits:
            stretches = values.reshape(len(values), -1, STRETCH if values.shape[1] % STRETCH == 0 else values.shape[1])
            scale = np.abs(stretches).max(axis=2, keepdims=True).astype(np.float32) / LARGEST
            arrays[f"{number}.scale"] = scale[..., 0]
            rounded = np.rint(stretches / np.maximum(scale, np.finfo(np.float32).tiny))
            arrays[f"{number}"] = rounded.astype(np.int8).reshape(values.shape)
            continue
        arrays[f"{number}"] = values.astype(np.float16)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load(network, path: Path) -> None:
    """Read all weights of a Keras model from a file of `save`. Raises OSError, ValueError or KeyError if it does not fit."""
    if not zipfile.is_zipfile(path):
        raise ValueError("found no file of arrays")
    with np.load(path, allow_pickle=False) as stored:
        expected = {str(number) for number in range(len(network.weights))}
        if (found := {name.removesuffix(".scale") for name in stored}) != expected:
            raise ValueError(f"expected {len(expected)} arrays, found {len(found)}")
        for number, variable in enumerate(network.weights):
            values = stored[f"{number}"].astype(np.float32)
            if f"{number}.scale" in stored:
                scale = stored[f"{number}.scale"]
                values = (values.reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape)
            if values.shape != tuple(variable.shape):
                raise ValueError(f"{variable.path}: expected {tuple(variable.shape)}, found {values.shape}")
            variable.assign(values)
