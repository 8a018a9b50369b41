"""Training batches as a pure function of (seed, step), from folders, TFDS or sample pictures."""

import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import pictures, resize

# How often an unreadable picture is replaced by one drawn for its place in a later batch, before
# the search goes on through the source in order.
_REPLACEMENTS = 7

# EXIF orientation -> how to turn the stored picture upright: flip its rows, flip its columns,
# then swap rows and columns.
_TURNS = np.array([
    (0, 0, 0), (0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0),  # 0 is not in use; 1, 2, 3, 4
    (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1),  # 5, 6, 7, 8
], bool)  # fmt: skip
_CODINGS = ("other", "jpeg", "png")


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection of pictures to draw from: what is known of each, nothing decoded.

    Attributes:
        spec: What the user asked for, see `open_source`.
        names: Name of each picture: its path, or "tfds:NAME:SPLIT#RECORD".
        sizes: int32 [N, 2], height and width in pixels, after the EXIF turn.
        orientations: uint8 [N], EXIF orientation 1 to 8.
        codings: uint8 [N], index into ("other", "jpeg", "png"), see `pictures.Header`.
        left_out: (name, reason) of each picture that is too small or cannot be read.
        read_many: Record numbers to encoded pictures, for sources that are not files.
        records: int64 [N], record number of each picture, for the same.
    """

    spec: str
    names: Sequence[str]
    sizes: np.ndarray
    orientations: np.ndarray
    codings: np.ndarray
    left_out: Sequence[tuple[str, str]] = ()
    read_many: Callable[[Sequence[int]], list[bytes]] | None = None
    records: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of usable pictures."""
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> "Source":
        """The pictures at these places, in this order; what was left out is not carried over."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in indices],
            sizes=self.sizes[indices],
            orientations=self.orientations[indices],
            codings=self.codings[indices],
            left_out=(),
            records=None if self.records is None else self.records[indices],
        )

    def read_rgb(self, index: int) -> np.ndarray:
        """Reads one picture whole.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ValueError: It is damaged; one line with its name.
        """
        name = self.names[index]
        if self.read_many is None:
            return pictures.read_rgb(name)
        encoded = self.read_many([self.records[index]])[0]
        return pictures.read_rgb(io.BytesIO(encoded), name)


def open_source(spec: str, *, min_size: int = 96) -> Source:
    """Finds the pictures of a data set and reads their headers.

    A picture whose shorter side is less than `min_size`, or whose header cannot be read, is left
    out, named in the log and listed in `left_out`.

    Args:
        spec: A folder, searched at any depth; `tfds:NAME[/CONFIG][:SPLIT]` (split "train" unless
            given); or `sample`, the photographs that scikit-image carries.
        min_size: Smallest usable side in pixels: the crop size.

    Returns:
        The source.

    Raises:
        ValueError, FileNotFoundError: There is no such data set, or it holds no usable picture.
    """
    if spec.startswith("tfds:"):
        raise ValueError(f"{spec}: not yet")
    paths = pictures.sample_pictures() if spec == "sample" else pictures.find_pictures(spec)
    names = [os.fspath(path) for path in paths]
    if not names:
        raise ValueError(f"{spec}: no pictures in this folder or below it")
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        headers = list(pool.map(_header_or_reason, names))
    return _usable(Source(spec, names, *_empty_facts()), headers, min_size)


def _empty_facts():
    return np.zeros((0, 2), np.int32), np.zeros(0, np.uint8), np.zeros(0, np.uint8)


def _header_or_reason(file, name=None) -> pictures.Header | str:
    try:
        return pictures.read_header(file, name)
    except ValueError as error:
        return str(error)


def _usable(source: Source, headers: list[pictures.Header | str], min_size: int) -> Source:
    """Fills in the facts of a source's pictures and leaves out those of no use."""
    kept, facts, left_out = [], [], []
    for index, (name, header) in enumerate(zip(source.names, headers, strict=True)):
        if isinstance(header, str):
            reason = header.removeprefix(f"{name}: ")
        elif min(header.height, header.width) < min_size:
            reason = f"{header.width}x{header.height} is smaller than {min_size}x{min_size}"
        else:
            kept.append(index)
            facts.append(header)
            continue
        logging.warning("left out: %s: %s", name, reason)
        left_out.append((name, reason))
    if not kept:
        raise ValueError(
            f"{source.spec}: none of its {len(headers)} pictures can be used; "
            f"the first: {left_out[0][0]}: {left_out[0][1]}"
        )
    if left_out:
        logging.warning("%s: %d of %d left out", source.spec, len(left_out), len(headers))
    return Source(
        source.spec,
        [source.names[i] for i in kept],
        np.array([(f.height, f.width) for f in facts], np.int32),
        np.array([f.orientation for f in facts], np.uint8),
        np.array([_CODINGS.index(f.coding) for f in facts], np.uint8),
        left_out,
        source.read_many,
        None if source.records is None else source.records[kept],
    )


def split_validation(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    """Sets some pictures aside for validation: a choice by (seed, number of pictures) alone.

    Args:
        source: The pictures.
        count: How many to set aside.
        seed: Seed of the choice.

    Returns:
        The training source (which keeps `left_out`) and the validation source.

    Raises:
        ValueError: Not even one picture would be left to train on.
    """
    if not 0 <= count < len(source):
        raise ValueError(
            f"{source.spec}: cannot set {count} of {len(source)} pictures aside for validation"
        )
    order = _shuffled(np.arange(len(source)), len(source), seed, _SPLIT)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    train = dataclasses.replace(source.subset(rest), left_out=source.left_out)
    return train, source.subset(chosen)


# "Epochs" whose permutations choose validation pictures; those of the training count from 0.
_SPLIT, _VALIDATION = -1, -2


def _shuffled(positions: tf.Tensor, count: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """Where a random permutation of `count` sends positions (int64 [n]); nothing is kept."""
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    last = tf.constant(count - 1, tf.int64)
    return tf.random.experimental.index_shuffle(positions, key, last)


def _drawer(source: Source, seed: int, batch_size: int, by_area: bool) -> Callable:
    """Makes the function that says which pictures a step uses.

    Returns:
        step -> int64 [batch_size, 1 + _REPLACEMENTS]: for every place in the batch its picture and
        those that replace it, in turn, where it cannot be read. While there are enough pictures,
        all are distinct.
    """
    count = len(source)
    later = tf.range(1 + _REPLACEMENTS, dtype=tf.int64)

    def uniformly(step):
        # An epoch is as many whole batches as there are: the rest of its permutation is not used,
        # so that no batch spans two epochs and meets a picture twice.
        batches = count // batch_size
        first = step % batches * batch_size + tf.range(batch_size, dtype=tf.int64)
        positions = (first[:, None] + later * batch_size) % count
        indices = _shuffled(tf.reshape(positions, [-1]), count, seed, step // batches)
        return tf.reshape(indices, [batch_size, -1])

    def repeatedly(step):
        # Fewer pictures than places: a step is several epochs, the last of them cut.
        epochs = -(-batch_size // count)
        positions = tf.reshape(tf.range(count, dtype=tf.int64)[:, None] + later, [-1]) % count
        indices = [_shuffled(positions, count, seed, step * epochs + n) for n in range(epochs)]
        return tf.reshape(tf.concat(indices, 0), [-1, 1 + _REPLACEMENTS])[:batch_size]

    def by_areas(step):
        # Gumbel's trick: the largest of log weight + Gumbel noise are a weighted draw without
        # replacement.
        uniform = tf.random.stateless_uniform(
            [count], tf.stack([tf.cast(seed, tf.int64), -1 - step]), dtype=tf.float64, alg="philox"
        )
        scores = log_weights - tf.math.log(-tf.math.log(uniform))
        order = tf.math.top_k(scores, drawn).indices
        positions = (tf.range(batch_size, dtype=tf.int64)[:, None] + later * batch_size) % drawn
        return tf.cast(tf.gather(order, positions), tf.int64)

    if not by_area:
        return uniformly if count >= batch_size else repeatedly
    drawn = min(count, batch_size * (1 + _REPLACEMENTS))
    log_weights = tf.constant(0.7 * np.log(source.sizes.astype(np.float64).prod(axis=1)))
    return by_areas


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
    """Makes an endless stream of training batches that is a pure function of (seed, step).

    The batch of a step is `batch_size` random crops of distinct pictures (while there are that
    many), each with its bicubic x1/4 (paper, section 3.2). It depends on the seed, the step and the
    pictures alone: not on where the stream was started, on how it is divided, or on timing.

    A picture that turns out to be damaged when it is drawn is named in the log once and replaced,
    each time it is drawn, by the picture that its place in the batch would get next, so that the
    stream stays the same function. A truncated JPEG still serves crops above the damage.

    Args:
        source: The pictures.
        seed: Seed of permutations, crops, flips and rotations.
        batch_size: Crops in a step over all pipelines.
        start_step: Step that the first element belongs to; any step starts at once.
        replica_batch_size: Crops in an element, by default the pipeline's whole share of a step.
            With less, a step's share comes as several elements in order.
        pipeline_index: Which pipeline this is: it gets the contiguous share of this number.
        pipeline_count: Into how many pipelines a batch is divided.
        crop_size: Side of an HR crop in pixels, a multiple of 4; the paper's is 96.
        augment: Flip and rotate the crops by multiples of 90 degrees (not in the paper).
        sample_by_area: Draw pictures by area^0.7, for collections of very different sizes, rather
            than each once an epoch (the paper's).
        cache: Decode all pictures first and keep them in memory: 3 bytes a pixel, 0.45 MB for each
            picture of 481x321, 220 GB for ImageNet.

    Returns:
        Elements (lr, hr): lr float32 [b, crop_size/4, crop_size/4, 3] in [0, 1], 8-bit levels;
        hr float32 [b, crop_size, crop_size, 3] in [-1, 1].

    Raises:
        ValueError: The numbers do not fit each other, a picture is smaller than a crop, or no
            picture can be read.
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

    draw = _drawer(source, seed, batch_size, sample_by_area)
    mine = slice(pipeline_index * share, (pipeline_index + 1) * share)

    def plan(step):
        key = tf.stack([tf.cast(seed, tf.int64), step])
        chances = tf.random.stateless_uniform([batch_size, 3], key, dtype=tf.float64, alg="philox")
        return draw(step)[mine], chances[mine]

    def finish(crops, chances):
        if augment:
            crops = _turn(crops, 1 + tf.cast(chances[2] * 8, tf.int32))
        return crops

    steps = tf.data.Dataset.counter(start_step)
    items = steps.map(plan, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    crops = _crop_all(items, source, crop_size).map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    batches = crops.batch(chunk, drop_remainder=True).map(
        _degrader(crop_size), num_parallel_calls=tf.data.AUTOTUNE
    )
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _require_readable(source: Source) -> None:
    for index in range(len(source)):
        try:
            source.read_rgb(index)
            return
        except ValueError as error:
            reason = error
    raise ValueError(f"{source.spec}: none of its pictures can be read; the last: {reason}")


def _crop_all(items: tf.data.Dataset, source: Source, size: int) -> tf.data.Dataset:
    """Turns (picture and replacements, chances) into (uint8 [size, size, 3] crop, chances)."""
    sizes = tf.constant(source.sizes, tf.int64)
    orientations = tf.constant(source.orientations, tf.int32)
    codings = tf.constant(source.codings, tf.int32)
    names = tf.constant(source.names)
    reported = set()

    def decode(candidates, chances):
        index = candidates[0]
        coding, orientation = codings[index], orientations[index]
        corner = tf.cast(chances[:2] * tf.cast(sizes[index] - size + 1, tf.float64), tf.int64)
        top, left = _stored_window(corner, sizes[index], orientation, size)
        encoded = tf.io.read_file(names[index])
        stored = tf.cond(
            coding == 1,
            lambda: tf.io.decode_and_crop_jpeg(
                encoded,
                tf.cast([top, left, size, size], tf.int32),
                channels=3,
                dct_method="INTEGER_ACCURATE",
            ),
            lambda: tf.slice(tf.io.decode_png(encoded, 3), [top, left, 0], [size, size, 3]),
        )
        return _turn(tf.ensure_shape(stored, [size, size, 3]), orientation)

    def try_first(candidates, chances):
        # Here alone an error can be caught without leaving TensorFlow: a damaged picture is an
        # element less, and the empty crop behind it comes forward.
        item = tf.data.Dataset.from_tensors((candidates, chances))
        blank = tf.zeros([size, size, 3], tf.uint8)
        failed = tf.data.Dataset.from_tensors((False, blank))
        plain = item.filter(lambda candidates, _: codings[candidates[0]] > 0)
        decoded = plain.map(lambda *item: (True, decode(*item))).ignore_errors()
        return (
            decoded.concatenate(failed)
            .take(1)
            .map(lambda done, crop: (done, crop, candidates, chances))
        )

    def search(candidates, chances):
        count = len(source)
        further = (candidates[0] + n for n in range(1, count))
        for index in [*candidates, *further]:
            index = int(index % count)
            try:
                picture = source.read_rgb(index)
            except ValueError as error:
                if index not in reported:
                    reported.add(index)
                    logging.warning("replaced: %s (%d so far)", error, len(reported))
                continue
            if picture.shape[:2] == tuple(source.sizes[index]):
                top, left = (chances[:2] * (source.sizes[index] - size + 1)).astype(np.int64)
                return picture[top : top + size, left : left + size]
        raise ValueError(f"{source.spec}: none of its pictures can be read any more")

    def otherwise(done, crop, candidates, chances):
        def searched():
            found = tf.numpy_function(search, [candidates, chances], tf.uint8, stateful=False)
            return tf.ensure_shape(found, [size, size, 3])

        return tf.cond(done, lambda: crop, searched), chances

    return items.interleave(
        try_first, cycle_length=16, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    ).map(otherwise, num_parallel_calls=tf.data.AUTOTUNE)


def _stored_window(corner, shape, orientation, size: int):
    """Where a window of the upright picture lies in the picture as stored: top, left."""
    flip_rows, flip_columns, swap = tf.unstack(tf.gather(_TURNS, orientation))
    corner = tf.where(swap, corner[::-1], corner)
    shape = tf.where(swap, shape[::-1], shape)
    flips = tf.stack([flip_rows, flip_columns])
    return tf.unstack(tf.where(flips, shape - size - corner, corner))


def _turn(square: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns a square crop [s, s, C] upright from an EXIF orientation (1 to 8)."""
    flip_rows, flip_columns, swap = tf.unstack(tf.gather(_TURNS, orientation))
    square = tf.cond(flip_rows, lambda: square[::-1], lambda: square)
    square = tf.cond(flip_columns, lambda: square[:, ::-1], lambda: square)
    return tf.cond(swap, lambda: tf.transpose(square, [1, 0, 2]), lambda: square)


def _degrader(crop_size: int) -> Callable:
    """Makes the function from uint8 HR crops to the (lr, hr) of `training_batches`."""
    size = crop_size // 4
    # The weights are multiples of 1/4096, so float32 sums are exact: the same as resize.imresize.
    matrix = tf.constant(resize.bicubic_matrix(crop_size, size), tf.float32)

    def to_8_bits(values):
        return tf.clip_by_value(tf.floor(values + 0.5), 0.0, 255.0)

    def degrade(crops):
        hr = tf.cast(crops, tf.float32)
        rows = tf.matmul(matrix, tf.reshape(hr, [-1, crop_size, crop_size * 3]))
        rows = tf.reshape(to_8_bits(rows), [-1, size, crop_size, 3])
        lr = to_8_bits(tf.einsum("jw,biwc->bijc", matrix, rows))
        lr = tf.ensure_shape(lr, [crops.shape[0], size, size, 3])
        return lr / 255.0, hr / 127.5 - 1.0

    return degrade


def validation_pairs(
    source: Source, *, count: int, max_size: int = 384
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Reads a fixed choice of pictures, with their bicubic x1/4.

    Args:
        source: The pictures.
        count: How many at most; fewer where there are not that many.
        max_size: Longest side of an HR picture in pixels; of a larger one the centre is cut out.

    Returns:
        (name, lr, hr) in the source's order: hr uint8 [4h, 4w, 3], lr uint8 [h, w, 3].

    Raises:
        ValueError: No picture can be read.
    """
    order = _shuffled(tf.range(len(source), dtype=tf.int64), len(source), 0, _VALIDATION).numpy()
    pairs = {}
    for index in order:
        if len(pairs) == count:
            break
        try:
            picture = source.read_rgb(index)
        except ValueError as error:
            logging.warning("left out: %s", error)
            continue
        height, width = (min(side, max_size) // 4 * 4 for side in picture.shape[:2])
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        hr = picture[top : top + height, left : left + width]
        pairs[index] = source.names[index], resize.imresize(hr, (height // 4, width // 4)), hr
    if count and not pairs:
        raise ValueError(f"{source.spec}: none of its pictures can be read")
    return [pairs[index] for index in sorted(pairs)]


def describe(source: Source) -> dict:
    """Sums up a source for a run's record.

    Returns:
        What `json.dumps` takes: spec; pictures, their number; left_out (number) and
        left_out_first (name and reason of the first 20); smallest, largest and total megapixels.
    """
    megapixels = source.sizes.astype(np.float64).prod(axis=1) / 1e6
    return {
        "spec": source.spec,
        "pictures": len(source),
        "left_out": len(source.left_out),
        "left_out_first": [list(pair) for pair in source.left_out[:20]],
        "smallest_megapixels": round(float(megapixels.min()), 4),
        "largest_megapixels": round(float(megapixels.max()), 4),
        "total_megapixels": round(float(megapixels.sum()), 2),
    }
