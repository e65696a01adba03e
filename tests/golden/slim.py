"""How slim.npz and slim.ckpt were made: TF-slim's own ResNet-v2-101, run on the values of `values` below.

    pip install tensorflow-cpu==2.21 tf_keras tf_slim==1.1.0
    python tests/golden/slim.py

The tests need none of this; they import `values` and `image`.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
SIZES = (299, 330)  # the root convolution's maps are then 150 and 165 wide: SAME pads them differently

Array = NDArray[np.float32]


def values(name: str, shape: Iterable[int]) -> Array:
    """A variable's values, from its name without the network's: RandomState's numbers never change."""
    shape = tuple(shape)
    path, _, part = name.partition("/")[2].rpartition("/")
    drawn = np.random.RandomState(crc32(f"{path}/{part}".encode())).random_sample(shape).astype(np.float32)
    if part == "weights":
        return (drawn - np.float32(0.5)) * np.float32(np.sqrt(12 / np.prod(shape[:3])))
    return drawn + np.float32(0.5) if part in ("gamma", "moving_variance") else drawn - np.float32(0.5)


def image(size: int) -> Array:
    """One image `[1, size, size, 3]` in [-1, 1]."""
    return np.random.RandomState(size).random_sample((1, size, size, 3)).astype(np.float32) * 2 - 1


def main() -> None:
    """Write both files."""
    import importlib

    for name in ("", ".normalization", ".convolutional", ".pooling", ".core", ".base"):  # moved since tf_slim 1.1.0
        moved = importlib.import_module(f"tf_keras.src.legacy_tf_layers{name}")
        sys.modules[f"tf_keras.legacy_tf_layers{name}"] = moved
    import tensorflow.compat.v1 as tf
    import tf_slim
    from tf_slim.nets import resnet_v2

    tf.disable_v2_behavior()
    x = tf.placeholder(tf.float32, [1, None, None, 3])
    with tf_slim.arg_scope(resnet_v2.resnet_arg_scope()):
        logits, _ = resnet_v2.resnet_v2_101(x, 1001, is_training=False)
    tf.train.get_or_create_global_step()
    net = [variable for variable in tf.global_variables() if variable.dtype.base_dtype == tf.float32]
    some = [variable for variable in tf.global_variables() if np.prod(variable.shape.as_list()) < 300]
    with tf.Session() as session:
        given = {one.initializer.inputs[1]: values(one.op.name, one.shape.as_list()) for one in net}
        session.run([one.initializer for one in tf.global_variables()], given)
        found: dict[str, Any] = {str(size): session.run(logits, {x: image(size)}).ravel() for size in SIZES}
        np.savez_compressed(HERE / "slim.npz", **found)
        saver = tf.train.Saver(some[:12] + some[-1:], write_version=tf.train.SaverDef.V1)
        saver.save(session, str(HERE / "slim.ckpt"), write_meta_graph=False, write_state=False)


if __name__ == "__main__":
    main()
