import itertools
import json
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import photograph, save_photograph
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from srgan_tf import data, pictures, resize
from srgan_tf.data import batches, sources

ORIENTATION = 0x0112


def _take(source, count, **options):
    """The next elements as (lr uint8, hr uint8)."""
    options = {"seed": 1, "batch_size": 4, "crop_size": 32} | options
    batches = data.training_batches(source, **options).take(count)
    return [
        tuple(np.round(x).astype(np.uint8) for x in (lr * 255, (hr + 1) * 127.5))
        for lr, hr in batches.as_numpy_iterator()
    ]


def _joined(chunks, count):
    """Puts each `count` chunks in a row together."""
    return [
        tuple(np.concatenate(parts) for parts in zip(*chunks[n : n + count], strict=True))
        for n in range(0, len(chunks), count)
    ]


def _is_piece(crop, picture):
    return (sliding_window_view(picture, crop.shape) == crop).all(axis=(-3, -2, -1)).any()


@pytest.fixture(scope="module")
def photos(photo_folder):
    return data.open_source(str(photo_folder), min_size=32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Ten pictures of one gray each: a crop tells which one it is from."""
    folder = tmp_path_factory.mktemp("plain")
    for number in range(10):
        Image.new("RGB", (9, 8), (number,) * 3).save(folder / f"{number}.png")
    return data.open_source(str(folder), min_size=8)


def _drawn(source, steps, **options):
    """Which pictures of `plain` each batch is from."""
    return [hr[:, 0, 0, 0].tolist() for _, hr in _take(source, steps, **{"crop_size": 8} | options)]


# The stream


def test_batches_have_the_shapes_types_and_ranges_of_the_paper(photos):
    batches = data.training_batches(photos, seed=1, batch_size=5)
    assert batches.element_spec == (
        tf.TensorSpec([5, 24, 24, 3], tf.float32),
        tf.TensorSpec([5, 96, 96, 3], tf.float32),
    )
    lr, hr = next(batches.as_numpy_iterator())
    assert lr.min() >= 0 and 0.5 < lr.max() <= 1
    assert -1 <= hr.min() < -0.5 and 0.5 < hr.max() <= 1
    for values in (lr * 255, (hr + 1) * 127.5):
        np.testing.assert_allclose(values, np.round(values), atol=1e-4)


def test_lr_is_matlabs_bicubic_of_the_crop(photos):
    for lr, hr in _take(photos, 5, crop_size=96):
        for small, large in zip(lr, hr, strict=True):
            np.testing.assert_array_equal(small, resize.imresize(large, (24, 24)))


def test_the_seed_determines_the_stream(photos):
    first = _take(photos, 8)
    np.testing.assert_equal(first, _take(photos, 8))
    assert (first[0][1] != _take(photos, 1, seed=2)[0][1]).any()


@pytest.mark.parametrize("options", [{}, {"augment": True}, {"sample_by_area": True}])
def test_a_stream_resumed_at_a_step_equals_the_rest_of_the_whole(photos, options):
    whole = _take(photos, 9, **options)
    for start in (1, 6):
        np.testing.assert_equal(
            whole[start:], _take(photos, 9 - start, start_step=start, **options)
        )


def test_a_stream_starts_at_once_at_any_step(photos):
    assert len(_take(photos, 1, start_step=10**12)) == 1


@pytest.mark.parametrize("options", [{}, {"sample_by_area": True, "augment": True}])
@pytest.mark.parametrize(("pipelines", "crops"), [(2, 4), (1, 2), (2, 2)])
def test_pipelines_and_replicas_divide_a_batch_in_order(photos, options, pipelines, crops):
    options = options | {"batch_size": 8, "start_step": 3}
    whole = _take(photos, 3, **options)
    count = 8 // pipelines // crops  # elements of a pipeline in a step
    options |= {"replica_batch_size": crops, "pipeline_count": pipelines}
    shares = [
        _joined(_take(photos, 3 * count, pipeline_index=n, **options), count)
        for n in range(pipelines)
    ]
    in_order = [share for step in zip(*shares, strict=True) for share in step]
    np.testing.assert_equal(_joined(in_order, pipelines), whole)


def test_the_order_is_kept_and_the_data_are_not_sharded_again(photos):
    options = data.training_batches(photos, seed=1, batch_size=2).options()
    assert options.deterministic is True
    policy = options.experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.OFF


# Which pictures


def test_a_batch_has_distinct_pictures_and_does_not_span_two_epochs(plain):
    batches = _drawn(plain, 20)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len({*first, *second}) == 8


def test_permutations_do_not_repeat():
    positions = tf.range(20, dtype=tf.int64)
    keys = [(1, epoch) for epoch in range(400)] + [(257, 0), (-1, 0), (2**40, 0)]
    orders = {sources.shuffled(positions, 500, *key).numpy().tobytes() for key in keys}
    assert len(orders) == len(keys)
    everything = sources.shuffled(tf.range(500, dtype=tf.int64), 500, 1, 0).numpy()
    assert sorted(everything) == list(range(500))


def _counts(source, steps, batch_size, by_area=False):
    def draw(step):
        return batches._drawn(source, step, 1, batch_size, by_area)

    drawn = tf.data.Dataset.counter(0).map(draw).take(steps)
    return np.bincount(np.concatenate(list(drawn.as_numpy_iterator())), minlength=len(source))


def test_all_pictures_are_drawn_equally_often(plain):
    counts = _counts(plain, 1500, 4)
    assert np.abs(counts - 600).max() < 60  # 5.5 sigma


def test_a_batch_larger_than_the_source_repeats_pictures_evenly(plain):
    batches = _drawn(plain.subset([1, 4, 7]), 15, batch_size=8)
    for batch in batches:
        assert sorted(Counter(batch).values()) == [2, 3, 3]
        assert len(set(batch[:3])) == len(set(batch[3:6])) == 3
    assert {batch.count(1) for batch in batches} == {2, 3}


def test_drawing_by_area_follows_area_to_the_power_of_0_7(tmp_path):
    for side in (10, 40):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    counts = _counts(data.open_source(str(tmp_path), min_size=8), 1500, 1, by_area=True)
    assert counts[1] / 1500 == pytest.approx(16**0.7 / (1 + 16**0.7), abs=0.04)  # 4.6 sigma


def test_a_batch_drawn_by_area_has_distinct_pictures(plain):
    for batch in _drawn(plain, 15, batch_size=6, sample_by_area=True):
        assert len(set(batch)) == 6
    for batch in _drawn(plain.subset([0, 1]), 5, batch_size=6, sample_by_area=True):
        assert sorted(batch) == [0, 0, 0, 1, 1, 1]


# Positions in the picture


@pytest.mark.parametrize("cache", [False, True])
def test_crops_come_from_every_position_in_a_picture(tmp_path, cache):
    rows, columns = np.mgrid[:11, :13]
    coordinates = np.dstack([rows, columns, 0 * rows]).astype(np.uint8)
    Image.fromarray(coordinates).save(tmp_path / "a.png")
    source = data.open_source(str(tmp_path), min_size=8)
    places = Counter()
    for _, hr in _take(source, 40, batch_size=24, crop_size=8, cache=cache):
        for crop in hr:
            top, left = crop[0, 0, :2]
            np.testing.assert_array_equal(crop, coordinates[top : top + 8, left : left + 8])
            places[top, left] += 1
    assert len(places) == 4 * 6
    assert min(places.values()) > 15 and max(places.values()) < 75  # 40 expected


def test_augmentation_is_the_eight_flips_and_rotations_and_off_by_default(tmp_path):
    picture = save_photograph(tmp_path / "a.png", 8, 8)
    source = data.open_source(str(tmp_path), min_size=8)
    expected = {np.rot90(p, n).tobytes() for p in (picture, picture[:, ::-1]) for n in range(4)}
    seen = Counter(
        crop.tobytes()
        for _, hr in _take(source, 10, batch_size=32, crop_size=8, augment=True)
        for crop in hr
    )
    assert set(seen) == expected and len(expected) == 8
    assert min(seen.values()) > 15  # 40 expected
    for _, hr in _take(source, 2, crop_size=8):
        assert all((crop == picture).all() for crop in hr)


# Formats and orientations


def _assert_all_are_cropped_as_read(source, steps):
    """Each crop is a piece of a picture as it is read, and each picture gets its turn."""
    whole = [source.read_rgb(index) for index in range(len(source))]
    crops = {}
    for _, hr in _take(source, steps, batch_size=len(source)):
        which = [next(n for n, x in enumerate(whole) if _is_piece(crop, x)) for crop in hr]
        assert sorted(which) == list(range(len(source)))
        for picture, crop in zip(which, hr, strict=True):
            crops.setdefault(picture, set()).add(crop.tobytes())
    assert all(len(places) > steps // 2 for places in crops.values())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_pictures_with_an_exif_orientation_are_cropped_upright(tmp_path, suffix):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        save_photograph(tmp_path / f"{orientation}{suffix}", 46, 71, orientation, exif=exif)
    source = data.open_source(str(tmp_path), min_size=32)
    assert source.sizes.tolist() == [[46, 71]] * 4 + [[71, 46]] * 4
    _assert_all_are_cropped_as_read(source, 6)


def test_a_crop_of_a_jpeg_equals_the_same_piece_of_the_whole(tmp_path):
    for number, (subsampling, progressive) in enumerate(itertools.product(range(3), [0, 1])):
        options = {"subsampling": subsampling, "progressive": bool(progressive), "quality": 70}
        save_photograph(tmp_path / f"{number}.jpg", 59, 83, number, **options)
    _assert_all_are_cropped_as_read(data.open_source(str(tmp_path), min_size=32), 8)


def test_crops_of_every_format_and_mode_equal_the_decoded_picture(tmp_path):
    sorts = iter(Image.fromarray(photograph(40, 50, seed)) for seed in range(20))
    next(sorts).save(tmp_path / "plain.jpg")
    next(sorts).save(tmp_path / "plain.png")
    next(sorts).convert("L").save(tmp_path / "gray.jpg")
    next(sorts).convert("L").save(tmp_path / "gray.png")
    next(sorts).convert("CMYK").save(tmp_path / "cmyk.jpg")
    next(sorts).quantize(32).save(tmp_path / "palette.png")
    transparent = next(sorts)
    transparent.putalpha(next(sorts).convert("L"))
    transparent.save(tmp_path / "alpha.png")
    gray = np.asarray(next(sorts).convert("L"), np.uint16)
    Image.fromarray(gray * 200).save(tmp_path / "16 bit.png")
    for suffix in ("webp", "bmp", "gif", "mpo", "tif"):
        next(sorts).save(tmp_path / f"a.{suffix}")
    source = data.open_source(str(tmp_path), min_size=32)
    assert len(source) == 13
    _assert_all_are_cropped_as_read(source, 4)


def test_a_cache_larger_than_the_memory_is_refused(photos, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 512)
    with pytest.raises(ValueError, match="leave out --cache"):
        _take(photos, 1, cache=True)


# Unusable pictures


@pytest.fixture
def log(caplog):
    """What absl logged, as a function."""
    caplog.set_level(logging.WARNING, logger="absl")
    return lambda: [record.getMessage() for record in caplog.records]


def _cut(path, part=0.8):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def test_small_and_unreadable_pictures_are_skipped_named_and_counted(tmp_path, log):
    save_photograph(tmp_path / "good.png", 40, 40)
    save_photograph(tmp_path / "small.png", 31, 60)
    (tmp_path / "text.jpg").write_text("Not a picture.")
    source = data.open_source(str(tmp_path), min_size=32)
    assert [Path(name).name for name in source.names] == ["good.png"]
    assert [Path(name).name for name, _ in source.skipped] == ["small.png", "text.jpg"]
    assert source.skipped[0][1] == "60x31 is smaller than 32x32"
    messages = "\n".join(log())
    assert "small.png: 60x31" in messages and "text.jpg: cannot be read" in messages
    assert "2 of 3 pictures skipped" in messages
    assert len(_take(source, 2)) == 2


def test_a_picture_without_a_sensible_reading_is_replaced_by_name(tmp_path, log):
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "floats.tif")
    Image.fromarray(np.where(values < 0.5, np.nan, values)).save(tmp_path / "nan.tif")
    source = data.open_source(str(tmp_path), min_size=64)
    for _, hr in _take(source, 2, batch_size=2, crop_size=64):
        np.testing.assert_array_equal(hr[..., 0], [np.floor(values * 255 + 0.5)] * 2)
    assert any("nan.tif: is damaged and replaced" in message for message in log())


def test_a_damaged_picture_is_replaced_and_named_once(tmp_path, log):
    for number in range(24):
        suffix = ".jpg" if number % 2 else ".png"
        save_photograph(tmp_path / f"{number:02}{suffix}", 64, 64, seed=number)
    for name in ("02.png", "03.jpg"):
        _cut(tmp_path / name)
    source = data.open_source(str(tmp_path), min_size=64)
    assert len(source) == 24
    good = [source.read_rgb(index) for index in range(24) if index not in (2, 3)]
    batches = _take(source, 12, crop_size=64)  # whole pictures: the JPEG's too reaches the damage
    for _, hr in batches:
        which = [next(n for n, x in enumerate(good) if (x == crop).all()) for crop in hr]
        assert len(set(which)) == 4, "the replacement is a picture that is in the batch already"
    messages = [message for message in log() if "replaced" in message]
    assert sorted(Path(m.split(":")[0]).name for m in messages) == ["02.png", "03.jpg"]
    assert messages[1].endswith("(2 so far)")
    # A resumed or divided run, or one from memory, sees the same.
    np.testing.assert_equal(batches[5:], _take(source, 7, crop_size=64, start_step=5))
    np.testing.assert_equal(batches, _take(source, 12, crop_size=64, cache=True))
    chunks = _take(source, 48, crop_size=64, replica_batch_size=1)
    np.testing.assert_equal(batches, _joined(chunks, 4))


def test_one_undamaged_picture_among_many_is_found(tmp_path):
    for number in range(14):
        save_photograph(tmp_path / f"{number:02}.png", 32, 32, seed=number)
        if number != 9:
            _cut(tmp_path / f"{number:02}.png")
    source = data.open_source(str(tmp_path), min_size=32)
    for _, hr in _take(source, 3, batch_size=1):
        np.testing.assert_array_equal(hr[0], photograph(32, 32, seed=9))


def test_a_source_of_damaged_pictures_is_an_error_of_one_line(tmp_path):
    for number in range(3):
        save_photograph(tmp_path / f"{number}.png", 40, 40)
        _cut(tmp_path / f"{number}.png")
    source = data.open_source(str(tmp_path), min_size=32)
    with pytest.raises(ValueError, match="none of its pictures can be read.*2.png") as caught:
        data.training_batches(source, seed=1, batch_size=2, crop_size=32)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="none of its pictures can be read"):
        data.validation_pairs(source, count=2)


def test_a_source_of_small_pictures_is_an_error_of_one_line(tmp_path):
    save_photograph(tmp_path / "a.png", 40, 40)
    with pytest.raises(ValueError, match="none of its 1 pictures can be used.*40x40") as caught:
        data.open_source(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 30}, "multiple of 4"),
        ({"batch_size": 3, "pipeline_count": 2}, "cannot be divided among 2 pipelines"),
        ({"pipeline_index": 2, "pipeline_count": 2}, "no pipeline 2"),
        ({"replica_batch_size": 3}, "no multiple of 3"),
        ({"crop_size": 120}, "smaller than a crop of 120"),
    ],
)
def test_contradictory_numbers_are_refused(photos, options, message):
    with pytest.raises(ValueError, match=message):
        _take(photos, 1, **options)


# TFDS and the sample pictures


@pytest.fixture
def tfds(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    return tfds_folder


def test_tfds_and_a_folder_of_the_same_pictures_have_the_same_stream(tfds, tmp_path):
    source = data.open_source("tfds:tiny_photos", min_size=32)
    assert len(source) == 20
    for number in range(20):  # TFDS shuffles when it prepares: take its order
        (tmp_path / f"{number:02}.jpg").write_bytes(source.read_record(number))
    folder = data.open_source(str(tmp_path), min_size=32)
    np.testing.assert_array_equal(source.sizes, folder.sizes)
    for options in ({}, {"cache": True, "augment": True}, {"sample_by_area": True}):
        np.testing.assert_equal(_take(source, 6, **options), _take(folder, 6, **options))


def test_tfds_uses_the_hr_picture_of_a_pair(tfds):
    source = data.open_source("tfds:tiny_photos:validation", min_size=32)
    assert sorted(map(tuple, source.sizes)) == [(100 + 2 * n, 150) for n in range(20, 24)]
    assert source.names[3] == "tfds:tiny_photos:validation#3"


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("tiny_photos:train[:25%]", 5),
        ("tiny_photos:1.0.0", 20),
        ("tiny_photos:1.0.0:validation", 4),
        ("tiny_photos:train+validation", 24),
    ],
)
def test_tfds_splits_and_versions_are_understood(tfds, spec, count):
    assert len(data.open_source(f"tfds:{spec}")) == count


def test_tfds_headers_are_read_once(tfds, monkeypatch):
    first = data.open_source("tfds:tiny_photos:train[5:9]")

    def fail(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(pictures, "read_header", fail)
    again = data.open_source("tfds:tiny_photos:train[5:9]", min_size=110)
    assert len(again) <= len(first) == 4
    assert {*again.names, *(name for name, _ in again.skipped)} == set(first.names)


def test_splits_with_similar_names_have_separate_header_files(tfds):
    sizes = [data.open_source(f"tfds:tiny_photos:train{s}").sizes for s in ("", "[:4]", "[-4:]")]
    np.testing.assert_array_equal(sizes[1], sizes[0][:4])
    np.testing.assert_array_equal(sizes[2], sizes[0][-4:])


def test_a_damaged_header_file_is_rebuilt(tfds):
    source = data.open_source("tfds:tiny_photos:train[:2]")
    for path in tfds.rglob("srgan_tf_headers*"):
        path.write_bytes(b"PK garbage")
    np.testing.assert_array_equal(
        data.open_source("tfds:tiny_photos:train[:2]").sizes, source.sizes
    )


def test_a_read_only_data_set_can_be_used(tfds, monkeypatch, log):
    def fail(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(np, "savez", fail)
    assert len(data.open_source("tfds:tiny_photos:train[3:6]")) == 3
    assert any("read again at the next start" in message for message in log())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:", "should read tfds:NAME"),
        ("tfds:no_such_data_set", "not found"),
        ("tfds:tiny_photos:test", "Unknown split 'test'"),
        ("tfds:imagenet2012", "Manual directory"),
    ],
)
def test_an_unavailable_data_set_is_an_error_of_one_line(tfds, spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.open_source(spec)
    assert str(caught.value).startswith(spec) and "\n" not in str(caught.value)


def test_tfds_data_of_another_file_format_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="old_photos",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image}),
        split_datasets={"train": ((n, {"image": photograph(40, 40)}) for n in range(2))},
        data_dir=tmp_path,
        file_format="tfrecord",
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="tfrecord.*Set TFDS_DATA_DIR to another folder") as caught:
        data.open_source("tfds:old_photos")
    assert "\n" not in str(caught.value)


# Validation


def test_validation_pairs_are_center_crops_in_multiples_of_4_with_their_lr(photos):
    pairs = data.validation_pairs(photos, count=6, max_size=118)
    assert len(pairs) == 6
    assert [name for name, _, _ in pairs] == [
        n for n in photos.names if n in dict.fromkeys(p[0] for p in pairs)
    ]
    for name, lr, hr in pairs:
        picture = pictures.read_rgb(name)
        height, width = (min(side, 118) // 4 * 4 for side in picture.shape[:2])
        assert hr.shape == (height, width, 3) and lr.shape == (height // 4, width // 4, 3)
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        np.testing.assert_array_equal(hr, picture[top : top + height, left : left + width])
        np.testing.assert_array_equal(lr, resize.imresize(hr, lr.shape[:2]))


def test_validation_pairs_are_reproducible_and_all_pictures_if_there_are_few(photos):
    some = [name for name, _, _ in data.validation_pairs(photos, count=6)]
    assert some == [name for name, _, _ in data.validation_pairs(photos, count=6)]
    everything = [name for name, _, _ in data.validation_pairs(photos, count=99)]
    assert everything == list(photos.names)


def test_a_damaged_validation_picture_is_skipped(tmp_path, log):
    for number in range(3):
        save_photograph(tmp_path / f"{number}.png", 40, 40)
    _cut(tmp_path / "1.png")
    source = data.open_source(str(tmp_path), min_size=32)
    names = [Path(name).name for name, _, _ in data.validation_pairs(source, count=3)]
    assert names == ["0.png", "2.png"]
    assert any("1.png" in message for message in log())


def test_validation_pictures_are_not_trained_on(photos):
    train, val = data.split_validation(photos, 5, seed=3)
    assert len(val) == 5 and len(train) == 15
    assert {*train.names, *val.names} == set(photos.names)
    again = data.split_validation(photos, 5, seed=3)[1]
    assert val.names == again.names
    assert val.names != data.split_validation(photos, 5, seed=4)[1].names
    np.testing.assert_array_equal(val.sizes[2], pictures.read_rgb(val.names[2]).shape[:2])


def test_a_split_that_leaves_nothing_to_train_on_is_refused(photos):
    with pytest.raises(ValueError, match="cannot set 20 of 20 pictures aside"):
        data.split_validation(photos, 20, seed=1)


def test_tfds_sources_can_be_split(tfds):
    train, val = data.split_validation(data.open_source("tfds:tiny_photos"), 3, seed=1)
    name, _, hr = data.validation_pairs(val, count=1)[0]
    number = int(name.split("#")[1])
    whole = data.open_source("tfds:tiny_photos")
    height, width = whole.sizes[number] // 4 * 4
    assert hr.shape == (height, width, 3)
    assert len(_take(train, 2)) == 2


def test_a_description_counts_used_and_skipped_pictures(tmp_path):
    save_photograph(tmp_path / "a.png", 1000, 500)
    save_photograph(tmp_path / "b.png", 100, 200)
    save_photograph(tmp_path / "c.png", 10, 20)
    description = data.describe(data.open_source(str(tmp_path)))
    assert json.loads(json.dumps(description)) == description
    assert description["pictures"] == 2 and description["left_out"] == 1
    assert description["left_out_first"][0][1] == "20x10 is smaller than 96x96"
    assert description["smallest_megapixels"] == 0.02
    assert description["largest_megapixels"] == 0.5
    assert description["total_megapixels"] == 0.52


def test_a_fingerprint_depends_on_the_pictures_but_not_on_their_folder(tmp_path):
    def fingerprint(folder, widths):
        (tmp_path / folder).mkdir(parents=True)
        for number, width in enumerate(widths):
            save_photograph(tmp_path / folder / f"{number}.png", 32, width)
        source = data.open_source(str(tmp_path / folder), min_size=32)
        return data.describe(source)["fingerprint"]

    first = fingerprint("a", [40, 50])
    assert fingerprint("moved/b", [40, 50]) == first
    assert fingerprint("c", [40, 51]) != first
    assert fingerprint("d", [50, 40]) != first
    assert fingerprint("e", [40, 50, 60]) != first
