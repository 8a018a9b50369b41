"""Training batches as a pure function of (seed, step), from folders, TFDS or sample pictures."""

import dataclasses
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import pictures, resize

AUTOTUNE = tf.data.AUTOTUNE

_CODINGS = ("other", "jpeg", "png")

# EXIF orientation -> how to turn the stored picture upright: flip its rows, flip its columns,
# then swap rows and columns.
_TURNS = np.array(
    [(0, 0, 0)]  # 0 is not in use
    + [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)]  # 1 to 4
    + [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)],  # 5 to 8
    bool,
)

# How often an unreadable picture is replaced by one that its place in the batch would get later,
# before the search goes through the source in order.
_REPLACEMENTS = 7

# "Epochs" whose permutations choose validation pictures; those of the training count from 0.
_SPLIT, _VALIDATION = -1, -2


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection of pictures to draw from: what is known of each, nothing decoded.

    Attributes:
        spec: What the user asked for, see `open_source`.
        names: Name of each picture: its path, or "tfds:NAME:SPLIT#RECORD".
        sizes: int32 [N, 2], height and width in pixels, after the EXIF turn.
        orientations: int32 [N], EXIF orientation 1 to 8.
        codings: int32 [N], index into ("other", "jpeg", "png"), see `pictures.Header`.
        left_out: (name, reason) of each picture that is too small or cannot be read.
        records: int64 [N], which record each picture is, where pictures are not files.
        read_record: Record number to encoded picture, for the same; raises ValueError.
    """

    spec: str
    names: Sequence[str]
    sizes: np.ndarray
    orientations: np.ndarray
    codings: np.ndarray
    left_out: Sequence[tuple[str, str]] = ()
    records: np.ndarray | None = None
    read_record: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        """Number of usable pictures."""
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> "Source":
        """The pictures at these places, in this order; `left_out` stays with the whole."""
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
        if self.records is None:
            return pictures.read_rgb(name)
        return pictures.read_rgb(io.BytesIO(self.read_record(self.records[index])), name)


def open_source(spec: str, *, min_size: int = 96) -> Source:
    """Finds the pictures of a data set and reads their headers.

    A picture whose shorter side is less than `min_size`, or whose header cannot be read, is left
    out, named in the log and listed in `left_out`.

    The headers of a folder are read at each start: some thousand files a second. Those of a TFDS
    data set come with the whole records, likewise some thousand a second (ImageNet: about ten
    minutes), so they are kept in a small file beside the data set.

    Args:
        spec: A folder, searched at any depth; `tfds:NAME[/CONFIG][:SPLIT]` (split "train" unless
            given), found or prepared in TFDS_DATA_DIR; or `sample`, the photographs that
            scikit-image carries.
        min_size: Smallest usable side in pixels: the crop size.

    Returns:
        The source.

    Raises:
        ValueError, FileNotFoundError: There is no such data set, or it holds no usable picture.
    """
    if spec.startswith("tfds:"):
        return _open_tfds(spec, min_size)
    paths = pictures.sample_pictures() if spec == "sample" else pictures.find_pictures(spec)
    names = [os.fspath(path) for path in paths]
    if not names:
        raise ValueError(f"{spec}: no pictures in this folder or below it")
    headers, reasons = _scan(names, lambda number: names[number])
    return _usable(spec, names, headers, reasons, min_size)


def _open_tfds(spec: str, min_size: int) -> Source:
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", spec)
    if not match:
        raise ValueError(f"{spec}: should read tfds:NAME[/CONFIG][:SPLIT]")
    name, split = match[1], match[2] or "train"
    try:
        import array_record  # noqa: F401  (TFDS would say only later, and less plainly)
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"{spec}: needs pip install tensorflow-datasets array_record importlib_resources "
            f"({error})"
        ) from error
    try:
        data_dir = os.environ.get("TFDS_DATA_DIR")  # TFDS itself would look once, when imported
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        features = builder.info.features
        images = [key for key in features if isinstance(features[key], tfds.features.Image)]
        decoders = {key: tfds.decode.SkipDecoding() for key in images}
        data_source = builder.as_data_source(split, decoders=decoders)
    except Exception as error:  # a data set's own code raises all sorts
        reason = pictures.one_line(error)
        if "file format" in reason:
            reason += " Set TFDS_DATA_DIR to another folder to prepare it there as array_record."
        raise ValueError(f"{spec}: cannot be opened or prepared: {reason}") from error
    if not images:
        raise ValueError(f"{spec}: holds no pictures, only {', '.join(features)}")
    # DIV2K and its like have the picture as "hr" beside a shrunken one; elsewhere it is "image".
    key = next((key for key in ("image", "hr") if key in images), images[0])

    def read_record(number: int) -> bytes:
        try:
            return data_source[int(number)][key]
        except Exception as error:  # array_record and the parser raise all sorts on damage
            raise ValueError(f"{name}:{split}#{number}: damaged record ({error})") from error

    names = [f"tfds:{name}:{split}#{number}" for number in range(len(data_source))]
    # Splits as different as train[:9] and train[-9:] are the same words.
    slug = re.sub(r"\W+", "_", f"{key}-{split}") + f"-{zlib.crc32(split.encode()):08x}"
    index = os.path.join(builder.data_dir, f"srgan_tf_headers-{slug}.npz")
    headers, reasons = _stored_headers(index, len(names)) or _scan(
        names, lambda number: io.BytesIO(read_record(number)), index
    )
    return _usable(spec, names, headers, reasons, min_size, read_record)


def _scan(
    names: Sequence[str], open_one: Callable, index: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Reads the headers of all pictures.

    Args:
        names: Their names.
        open_one: Number of a picture to what `pictures.read_header` takes.
        index: Where to keep the result for `_stored_headers`.

    Returns:
        int32 [N, 4]: height, width, orientation, place of the coding in _CODINGS; and the reasons
        of those that cannot be read, whose rows are 0.
    """

    def look(number):
        try:
            header = pictures.read_header(open_one(number), names[number])
        except ValueError as error:
            return str(error).removeprefix(f"{names[number]}: ")
        return header._replace(coding=_CODINGS.index(header.coding))

    logging.info("reading the headers of %d pictures", len(names))
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(look, range(len(names))))
    reasons = {number: reason for number, reason in enumerate(found) if isinstance(reason, str)}
    headers = np.array(
        [(0, 0, 0, 0) if number in reasons else row for number, row in enumerate(found)], np.int32
    )
    if index is not None:
        try:
            # Under another name first: several processes may do this at once.
            draft = f"{index}.{os.getpid()}.npz"
            np.savez(
                draft,
                headers=headers,
                broken=np.array(list(reasons), np.int64),
                reasons=np.array(list(reasons.values()), str),
            )
            os.replace(draft, index)
        except OSError as error:
            logging.warning("picture headers will be read again at the next start: %s", error)
    return headers, reasons


def _stored_headers(index: str, count: int) -> tuple[np.ndarray, dict[int, str]] | None:
    """What `_scan` kept in `index`, if it is there and of this number of pictures."""
    try:
        with np.load(index) as stored:
            if len(stored["headers"]) == count:
                broken, reasons = stored["broken"].tolist(), stored["reasons"].tolist()
                return stored["headers"], dict(zip(broken, reasons, strict=True))
    except FileNotFoundError:
        pass
    except Exception as error:  # zipfile and NumPy raise all sorts on a damaged file
        logging.warning("%s: cannot be read and is made anew (%s)", index, error)
    return None


def _usable(spec, names, headers, reasons, min_size, read_record=None) -> Source:
    """Makes the source of the pictures that can be used; names those that cannot."""
    left_out = []
    for number in np.flatnonzero(headers[:, :2].min(axis=1) < min_size).tolist():
        height, width = headers[number, :2]
        reason = reasons.get(number, f"{width}x{height} is smaller than {min_size}x{min_size}")
        logging.warning("left out: %s: %s", names[number], reason)
        left_out.append((names[number], reason))
    if len(left_out) == len(names):
        raise ValueError(
            f"{spec}: none of its {len(names)} pictures can be used; the first is "
            f"{left_out[0][0]}: {left_out[0][1]}"
        )
    if left_out:
        logging.warning("%s: %d of %d pictures left out", spec, len(left_out), len(names))
    whole = Source(
        spec,
        names,
        sizes=headers[:, :2],
        orientations=headers[:, 2],
        codings=headers[:, 3],
        records=None if read_record is None else np.arange(len(names)),
        read_record=read_record,
    )
    kept = np.flatnonzero(headers[:, :2].min(axis=1) >= min_size)
    return dataclasses.replace(whole.subset(kept), left_out=left_out)


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


def _shuffled(positions: tf.Tensor, count: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """Where a random permutation of `count` sends positions (int64 [n]); nothing is kept."""
    # index_shuffle takes but the last 8 bits of each part of its key where count < 2**16: by itself
    # it would repeat after 256 epochs. Two of it, with hashed keys, have 2**32 permutations.
    epoch_key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    keys = tf.random.stateless_uniform(
        [2, 2], epoch_key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
    )
    for key in tf.unstack(keys):
        positions = tf.random.experimental.index_shuffle(
            positions, key, tf.constant(count - 1, tf.int64)
        )
    return positions


def _drawer(source: Source, seed: int, batch_size: int, by_area: bool) -> Callable:
    """Makes the function that says which pictures a step uses.

    Returns:
        step -> int64 [batch_size, 1 + _REPLACEMENTS]: for every place in the batch its picture and
        those that replace it, in turn, where it cannot be read. While there are enough pictures,
        those of a batch are distinct, and so, but for the end of an epoch, are their replacements.
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

    Of a JPEG only what lies around the crop is decoded, of others all: a PNG of 2 megapixels takes
    a core about 0.1 s for each crop, so that for large PNGs the cache is worth its memory.

    A picture that turns out to be damaged when it is drawn is named in the log once. Each time it
    is drawn it is replaced by the picture that its place in the batch would get a step later, or
    further on, so that the stream stays a pure function. A truncated JPEG still serves crops above
    the damage.

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
            picture of 481x321. Refused where twice that, which it takes for a moment, is more
            than four fifths of the memory.

    Returns:
        Elements (lr, hr): lr float32 [b, crop_size/4, crop_size/4, 3] in [0, 1], 8-bit levels;
        hr float32 [b, crop_size, crop_size, 3] in [-1, 1].

    Raises:
        ValueError: The numbers do not fit each other, a picture is smaller than a crop, no picture
            can be read, or the cache does not fit.
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

    # Tables and eager steps on a GPU would cost a transfer each.
    with tf.device("CPU"):
        draw = _drawer(source, seed, batch_size, sample_by_area)
        mine = slice(pipeline_index * share, (pipeline_index + 1) * share)

        # Nothing here needs AutoGraph, and its reading of these functions takes a second.
        @tf.autograph.experimental.do_not_convert
        def plan(step):
            key = tf.stack([tf.constant(seed, tf.int64), step])
            chances = tf.random.stateless_uniform(
                [batch_size, 3], key, dtype=tf.float64, alg="philox"
            )
            return tuple(
                tf.reshape(each[mine], [share // chunk, chunk, each.shape[1]])
                for each in (draw(step), chances)
            )

        chunks = tf.data.Dataset.counter(start_step).map(plan).unbatch()
        crop_all = _taker(source, _cropper(source, crop_size, augment, cache))
        degrade = _degrader(crop_size)

        @tf.autograph.experimental.do_not_convert
        def take(candidates, chances):
            return crop_all(candidates, chances).map(degrade)

        batches = chunks.interleave(
            take,
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


def _taker(source: Source, crop: Callable) -> Callable:
    """Makes the function that takes the crops of a chunk, whatever is damaged.

    Args:
        source: The pictures.
        crop: See `_cropper`.

    Returns:
        (int64 [b, 1 + _REPLACEMENTS] candidates for each place, float64 [b, 3] chances) -> data
        set of one element, uint8 [b, s, s, 3]: the crop of the first candidate that has one.
    """
    reported = set()

    def crop_firsts(candidates, chances):
        return tf.map_fn(
            lambda place: crop(*place), (candidates[:, 0], chances), fn_output_signature=tf.uint8
        )

    def search(candidates, chances):
        found = []
        for place in range(len(candidates)):
            further = (candidates[place, 0] + np.arange(1, min(len(source), 1000))) % len(source)
            for index in (*candidates[place], *further):
                try:
                    with tf.device("CPU"):
                        found.append(crop(index, chances[place]).numpy())
                    break
                except (tf.errors.OpError, ValueError):
                    if index not in reported:
                        reported.add(index)
                        logging.warning(
                            "%s: is damaged and replaced by another picture (%d so far)",
                            source.names[index],
                            len(reported),
                        )
            else:
                raise ValueError(f"{source.spec}: none of its pictures can be read")
        return np.stack(found)

    def with_replacements(candidates, chances):
        # tf.data alone can catch an error without leaving TensorFlow: where any crop of the chunk
        # fails, the first data set is empty, and the second takes its place.
        chunk = tf.data.Dataset.from_tensors((candidates, chances))
        firsts = chunk.map(crop_firsts).ignore_errors()

        def search_in_python(candidates, chances):
            found = tf.numpy_function(search, [candidates, chances], tf.uint8, stateful=False)
            return tf.ensure_shape(found, firsts.element_spec.shape)

        return firsts.concatenate(chunk.map(search_in_python)).take(1)

    return with_replacements


def _cropper(source: Source, size: int, augment: bool, cache: bool) -> Callable:
    """Makes the function that cuts a crop out of a picture.

    Returns:
        (int64 index, float64 [3] chances in [0, 1)) -> uint8 [size, size, 3]. The chances choose
        the top, the left and, with `augment`, one of the 8 ways to turn the crop. Works in a graph
        and out of it; raises ValueError or tf.errors.OpError where the picture is damaged.
    """
    sizes, orientations = tf.constant(source.sizes, tf.int64), tf.constant(source.orientations)
    # A name need not be UTF-8.
    names = tf.constant([os.fsencode(n) for n in source.names] if source.records is None else [])
    ways = source.codings
    if cache:
        memory, offsets = _decode_all(source)
        ways = np.where(offsets < 0, ways, len(_CODINGS))
        memory, offsets = tf.constant(memory), tf.constant(offsets)
    ways, turn = tf.constant(ways), _turner(size)

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
            # Two more columns on each side: at a cut libjpeg lacks the neighbours between which
            # it interpolates colours. So the crop equals the same piece of the whole picture.
            start, end = tf.maximum(x - 2, 0), tf.minimum(x + size + 2, stored_width)
            window = tf.cast([y, start, size, end - start], tf.int32)
            wide = tf.io.decode_and_crop_jpeg(
                read(index), window, channels=3, dct_method="INTEGER_ACCURATE"
            )
            return turn(tf.slice(wide, [0, x - start, 0], [size, size, 3]), orientation)

        def from_png():
            y, x, _ = _stored_window(top, left, height, width, orientation, size)
            whole = tf.io.decode_png(read(index), channels=3)
            return turn(tf.slice(whole, [y, x, 0], [size, size, 3]), orientation)

        def from_memory():
            side = tf.range(size, dtype=tf.int64)
            rows = offsets[index] + (top + side) * width
            return tf.gather(memory, rows[:, None] + left + side)

        branches = [from_other, from_jpeg, from_png] + [from_memory] * cache
        upright = tf.ensure_shape(tf.switch_case(ways[index], branches), [size, size, 3])
        return turn(upright, 1 + tf.cast(chances[2] * 8, tf.int32)) if augment else upright

    return crop


def _decode_all(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all pictures into one array.

    Returns:
        uint8 [pixels, 3], and int64 [N] where each picture begins, or -1 if it is damaged.

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
            return -1  # it is named when it is drawn
        if picture.shape[:2] != tuple(source.sizes[index]):
            return -1
        start = ends[index] - picture.shape[0] * picture.shape[1]
        memory[start : ends[index]] = picture.reshape(-1, 3)
        return start

    with ThreadPoolExecutor() as pool:
        return memory, np.array(list(pool.map(fill, range(len(source)))), np.int64)


def _stored_window(top, left, height, width, orientation, size: int):
    """Where a window of the upright picture lies in the picture as it is stored.

    Returns:
        The window's top and left there, and the stored picture's width.
    """
    flip_rows, flip_columns, swap = tf.unstack(tf.gather(_TURNS, orientation))
    top, left = tf.where(swap, left, top), tf.where(swap, top, left)
    height, width = tf.where(swap, width, height), tf.where(swap, height, width)
    top = tf.where(flip_rows, height - size - top, top)
    left = tf.where(flip_columns, width - size - left, left)
    return top, left, width


def _turner(size: int) -> Callable:
    """Makes the function that turns a square crop upright.

    Returns:
        ([size, size, 3] crop, EXIF orientation 1 to 8) -> [size, size, 3].
    """
    places = np.arange(size * size, dtype=np.int32).reshape(size, size)
    turned = []
    for flip_rows, flip_columns, swap in _TURNS:
        square = places[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        turned.append((square.T if swap else square).ravel())
    turned = tf.constant(np.stack(turned))

    def turn(square, orientation):
        pixels = tf.gather(tf.reshape(square, [size * size, 3]), turned[orientation])
        return tf.reshape(pixels, [size, size, 3])

    return turn


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
        left_out_first (name and reason of the first 20); smallest, largest and total megapixels;
        fingerprint, which changes with the names, the sizes or the order of the pictures, but not
        with the place of their folder.
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
        "fingerprint": hashlib.sha256(
            "\0".join(map(os.path.basename, source.names)).encode(errors="surrogateescape")
            + source.sizes.tobytes()
        ).hexdigest(),
    }
