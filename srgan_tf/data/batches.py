"""Training batches as a pure function of (seed, step)."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import resize
from srgan_tf.data.sources import CODINGS, Source, shuffled

AUTOTUNE = tf.data.AUTOTUNE

# EXIF orientation -> how to make the stored picture upright: flip its rows, flip its columns, then
# swap rows and columns.
_TURNS = np.array(
    [(0, 0, 0)]  # 0 is not in use
    + [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)]  # 1 to 4
    + [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)],  # 5 to 8
    bool,
)

# How many pictures are tried in the place of a damaged one.
_MOST_REPLACEMENTS = 1000


def training_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    replica_batch_size: int | None = None,
    pipeline_index: int = 0,
    pipeline_count: int = 1,
    crop_size: int = 96,
    augment: bool = False,
    sample_by_area: bool = False,
    cache: bool = False,
) -> tf.data.Dataset:
    """Builds an endless stream of training batches that is a pure function of (seed, step).

    The batch of a step is `batch_size` random crops of distinct pictures (while there are that
    many), each with its bicubic x1/4 (paper, section 3.2). It depends only on the seed, the step
    and the pictures: not on the step at which the stream started, its division or timing.

    Only the surroundings of the crop are decoded from a JPEG. Other formats are decoded whole: a
    PNG of 2 megapixels takes a core about 0.1 s per crop, so the cache pays for large PNGs.

    A picture that turns out to be damaged is named in the log once. Whenever it is drawn, the
    picture that its place in the batch gets one step later replaces it, or the one after that, so
    the stream stays a pure function. A replacement may repeat a picture of the batch at the end of
    an epoch and with `sample_by_area`. A truncated JPEG still provides crops above the damage.

    Args:
        source: The pictures.
        seed: Seed of permutations, crops, flips and rotations.
        batch_size: Crops in a step over all pipelines.
        start_step: Step of the first element; a late step starts as fast as an early one.
        replica_batch_size: Crops in an element, by default the pipeline's whole share of a step.
            A smaller number divides the share into several elements, in order.
        pipeline_index: Number of this pipeline, which gets the contiguous share of that number.
        pipeline_count: Number of pipelines that share a batch.
        crop_size: Side of an HR crop in pixels, a multiple of 4; the paper's is 96.
        augment: Flip and rotate the crops by multiples of 90 degrees (not in the paper).
        sample_by_area: Draw pictures with probabilities in proportion to area^0.7, for collections
            of very different sizes, rather than each once per epoch (the paper's way).
        cache: Decode all pictures first and keep them in memory: 3 bytes a pixel, 0.45 MB for each
            picture of 481x321. Twice that is needed while they load; refused where it exceeds four
            fifths of the machine's memory.

    Returns:
        Elements (lr, hr): lr float32 [b, crop_size/4, crop_size/4, 3] in [0, 1], 8-bit levels;
        hr float32 [b, crop_size, crop_size, 3] in [-1, 1].

    Raises:
        ValueError: The numbers contradict each other, a picture is smaller than a crop, no picture
            can be read, or the cache does not fit into memory.
    """
    if crop_size < 4 or crop_size % 4:
        raise ValueError(f"crop size {crop_size} is not a multiple of 4")
    if batch_size < 1 or batch_size % pipeline_count:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {pipeline_count} pipelines"
        )
    if not 0 <= pipeline_index < pipeline_count:
        raise ValueError(f"there is no pipeline {pipeline_index} among {pipeline_count}")
    share = batch_size // pipeline_count
    chunk = share if replica_batch_size is None else replica_batch_size
    if chunk < 1 or share % chunk:
        raise ValueError(f"a pipeline's share of {share} crops is no multiple of {chunk}")
    if source.sizes.min() < crop_size:
        raise ValueError(f"{source.spec}: has pictures smaller than a crop of {crop_size} pixels")
    _require_readable(source)

    with tf.device("CPU"):  # where a GPU is present, tables on it would cost transfers
        mine = slice(pipeline_index * share, (pipeline_index + 1) * share)

        # Nothing here needs AutoGraph, and its reading of these functions takes a second.
        @tf.autograph.experimental.do_not_convert
        def plan(step):
            key = tf.stack([tf.constant(seed, tf.int64), step])
            chances = tf.random.stateless_uniform(
                [batch_size, 3], key, dtype=tf.float64, alg="philox"
            )
            places = tf.range(batch_size, dtype=tf.int64)
            plans = tf.fill([batch_size], step), places, drawn(step), chances
            return tuple(
                tf.reshape(each[mine], [share // chunk, chunk, *each.shape[1:]]) for each in plans
            )

        def drawn(step):
            return _drawn(source, step, seed, batch_size, sample_by_area)

        chunks = tf.data.Dataset.counter(start_step).map(plan).unbatch()
        readable_crops = _readable_crops(source, _cropper(source, crop_size, augment, cache), drawn)

        @tf.autograph.experimental.do_not_convert
        def pairs(*plans):
            return readable_crops(*plans).map(_lr_and_hr)

        batches = chunks.interleave(
            pairs,
            cycle_length=4,
            num_parallel_calls=AUTOTUNE,
            deterministic=True,
        )
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.prefetch(AUTOTUNE).with_options(options)


def _require_readable(source: Source) -> None:
    for index in range(len(source)):
        try:
            source.read_rgb(index)
            return
        except ValueError as error:
            reason = error
    raise ValueError(f"{source.spec}: none of its pictures can be read; the last: {reason}")


def _drawn(source: Source, step: tf.Tensor, seed: int, batch_size: int, by_area: bool) -> tf.Tensor:
    """Chooses the pictures of a step, int64 [batch_size]; distinct while there are that many."""
    count = len(source)
    places = tf.range(batch_size, dtype=tf.int64)
    if by_area:
        # Gumbel's trick: the largest of log weight + Gumbel noise are a weighted draw without
        # replacement.
        log_weights = tf.constant(0.7 * np.log(source.sizes.astype(np.float64).prod(axis=1)))
        key = tf.stack([tf.constant(seed, tf.int64), -1 - step])
        uniform = tf.random.stateless_uniform([count], key, dtype=tf.float64, alg="philox")
        scores = log_weights - tf.math.log(-tf.math.log(uniform))
        order = tf.math.top_k(scores, min(count, batch_size)).indices
        return tf.cast(tf.gather(order, places % count), tf.int64)
    if count >= batch_size:
        # An epoch is as many whole batches as there are: the rest of its permutation is not used,
        # so that no batch spans two epochs and contains a picture twice.
        batches = count // batch_size
        positions = step % batches * batch_size + places
        return shuffled(positions, count, seed, step // batches)
    # Fewer pictures than places: a step is several epochs, the last of them cut.
    epochs = -(-batch_size // count)
    positions = tf.range(count, dtype=tf.int64)
    indices = [shuffled(positions, count, seed, step * epochs + n) for n in range(epochs)]
    return tf.concat(indices, 0)[:batch_size]


def _readable_crops(source: Source, crop: Callable, drawn: Callable) -> Callable:
    """Makes the function that crops the pictures of a chunk and replaces damaged ones.

    Args:
        source: The pictures.
        crop: See `_cropper`.
        drawn: From a step to its pictures, see `_drawn`.

    Returns:
        (steps, places in the batch, pictures, all int64 [b], float64 [b, 3] chances) -> data set
        of one element, uint8 [b, s, s, 3].
    """
    damaged = set()

    def crop_all(steps, places, indices, chances):
        return tf.map_fn(lambda one: crop(*one), (indices, chances), fn_output_signature=tf.uint8)

    def crop_or_replace(step, place, index, chances):
        for later in range(1, 1 + _MOST_REPLACEMENTS):
            try:
                return crop(index, chances).numpy()
            except (tf.errors.OpError, ValueError):
                if index not in damaged:
                    damaged.add(index)
                    logging.warning(
                        "%s: is damaged and replaced by another picture (%d so far)",
                        source.names[index],
                        len(damaged),
                    )
            index = drawn(step + later)[place].numpy()
        raise ValueError(f"{source.spec}: none of its pictures can be read")

    def crop_or_replace_all(*plans):
        with tf.device("CPU"):
            return np.stack([*map(crop_or_replace, *plans)])

    def crops(*plans):
        # tf.data alone can catch an error without leaving TensorFlow: if any crop of the chunk
        # fails, the first data set is empty and the second takes its place. Reading every crop in
        # Python is simpler, but slower (benchmarks/README.md), and its threads keep a process that
        # ends with the stream open from exiting.
        chunk = tf.data.Dataset.from_tensors(plans)
        cut = chunk.map(crop_all).ignore_errors()

        def crop_in_python(*plans):
            found = tf.numpy_function(crop_or_replace_all, plans, tf.uint8, stateful=False)
            return tf.ensure_shape(found, cut.element_spec.shape)

        return cut.concatenate(chunk.map(crop_in_python)).take(1)

    return crops


def _cropper(source: Source, size: int, augment: bool, cache: bool) -> Callable:
    """Makes the function that cuts a crop out of a picture.

    Returns:
        (int64 index, float64 [3] chances in [0, 1)) -> uint8 [size, size, 3]. The chances choose
        the top, the left and, with `augment`, one of the eight flips and rotations. Works in a
        graph and eagerly; raises ValueError or tf.errors.OpError if the picture is damaged.
    """
    sizes, orientations = tf.constant(source.sizes, tf.int64), tf.constant(source.orientations)
    # A file name need not be UTF-8.
    names = tf.constant([os.fsencode(n) for n in source.names] if source.records is None else [])
    ways = source.codings
    if cache:
        memory, offsets = _decode_all(source)
        ways = np.where(offsets < 0, ways, len(CODINGS))
        memory, offsets = tf.constant(memory), tf.constant(offsets)
    ways = tf.constant(ways)

    def read(index):
        if source.records is None:
            return tf.io.read_file(names[index])
        return tf.numpy_function(
            lambda index: source.read_record(source.records[index]),
            [index],
            tf.string,
            stateful=False,
        )

    def crop(index, chances):
        (height, width), orientation = tf.unstack(sizes[index]), orientations[index]
        top, left = tf.unstack(
            tf.cast(chances[:2] * tf.cast(sizes[index] - size + 1, tf.float64), tf.int64)
        )

        def from_other():
            def read_and_cut(index, top, left):
                cut = source.read_rgb(index)[top : top + size, left : left + size]
                if cut.shape != (size, size, 3):
                    raise ValueError(f"{source.names[index]}: is smaller than its header says")
                return cut

            return tf.numpy_function(read_and_cut, [index, top, left], tf.uint8, stateful=False)

        def from_jpeg():
            y, x, stored_width = _stored_window(top, left, height, width, orientation, size)
            # Two more columns on each side: libjpeg interpolates colors between neighbors, which it
            # lacks at a cut. So the crop equals the same piece of the whole picture.
            start, end = tf.maximum(x - 2, 0), tf.minimum(x + size + 2, stored_width)
            window = tf.cast([y, start, size, end - start], tf.int32)
            wide = tf.io.decode_and_crop_jpeg(
                read(index), window, channels=3, dct_method="INTEGER_ACCURATE"
            )
            return _turned(tf.slice(wide, [0, x - start, 0], [size, size, 3]), orientation)

        def from_png():
            y, x, _ = _stored_window(top, left, height, width, orientation, size)
            whole = tf.io.decode_png(read(index), channels=3)
            return _turned(tf.slice(whole, [y, x, 0], [size, size, 3]), orientation)

        def from_memory():
            side = tf.range(size, dtype=tf.int64)
            rows = offsets[index] + (top + side) * width
            return tf.gather(memory, rows[:, None] + left + side)

        branches = [from_other, from_jpeg, from_png] + [from_memory] * cache
        upright = tf.ensure_shape(tf.switch_case(ways[index], branches), [size, size, 3])
        return _turned(upright, 1 + tf.cast(chances[2] * 8, tf.int32)) if augment else upright

    return crop


def _decode_all(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all pictures into one array.

    Returns:
        uint8 [pixels, 3], and int64 [N], the first pixel of each picture, or -1 if it is damaged.

    Raises:
        ValueError: They would fill most of the machine's memory.
    """
    ends = np.cumsum(source.sizes.astype(np.int64).prod(axis=1))
    needed, present = 3 * ends[-1], os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * needed > 0.8 * present:  # TensorFlow copies it
        raise ValueError(
            f"{source.spec}: would take {needed / 2**30:.1f} GiB of this machine's "
            f"{present / 2**30:.1f} GiB, and twice that while it is loaded; leave out --cache"
        )
    logging.info("decoding %d pictures into %.1f GiB of memory", len(source), needed / 2**30)
    memory = np.empty([ends[-1], 3], np.uint8)

    def fill(index):
        try:
            picture = source.read_rgb(index)
        except ValueError:
            return -1  # named in the log when it is drawn
        if picture.shape[:2] != tuple(source.sizes[index]):
            return -1
        start = ends[index] - picture.shape[0] * picture.shape[1]
        memory[start : ends[index]] = picture.reshape(-1, 3)
        return start

    with ThreadPoolExecutor() as pool:
        return memory, np.array(list(pool.map(fill, range(len(source)))), np.int64)


def _stored_window(top, left, height, width, orientation, size: int):
    """Finds the place of a window of the upright picture in the stored picture.

    Returns:
        The window's top and left there, and the stored picture's width.
    """
    flip_rows, flip_columns, swap = tf.unstack(tf.gather(_TURNS, orientation))
    top, left = tf.where(swap, left, top), tf.where(swap, top, left)
    height, width = tf.where(swap, width, height), tf.where(swap, height, width)
    top = tf.where(flip_rows, height - size - top, top)
    left = tf.where(flip_columns, width - size - left, left)
    return top, left, width


def _turned(square: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Makes a stored square [size, size, 3] of this EXIF orientation upright."""
    size = square.shape[0]
    places = np.arange(size * size, dtype=np.int32).reshape(size, size)
    orders = []
    for flip_rows, flip_columns, swap in _TURNS:
        order = places[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        orders.append((order.T if swap else order).ravel())
    pixels = tf.gather(
        tf.reshape(square, [size * size, 3]), tf.constant(np.stack(orders))[orientation]
    )
    return tf.reshape(pixels, [size, size, 3])


def _lr_and_hr(crops: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """From uint8 HR crops to the (lr, hr) of `training_batches`."""
    count, crop_size, _, _ = crops.shape
    size = crop_size // 4
    # The weights are multiples of 1/4096, so float32 sums are exact: the same as resize.imresize.
    matrix = tf.constant(resize.bicubic_matrix(crop_size, size), tf.float32)

    def to_8_bits(values):
        return tf.clip_by_value(tf.floor(values + 0.5), 0.0, 255.0)

    hr = tf.cast(crops, tf.float32)
    rows = tf.matmul(matrix, tf.reshape(hr, [-1, crop_size, crop_size * 3]))
    rows = tf.reshape(to_8_bits(rows), [-1, size, crop_size, 3])
    lr = to_8_bits(tf.einsum("jw,biwc->bijc", matrix, rows))
    return tf.ensure_shape(lr, [count, size, size, 3]) / 255.0, hr / 127.5 - 1.0
