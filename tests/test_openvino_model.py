import numpy as np
import openvino
import pytest
from conftest import photograph

from srgan_tf import (
    folding,
    litert,
    metrics,
    networks,
    openvino_model,
    pictures,
    resize,
    upscaling,
    weights,
)


@pytest.fixture(scope="module")
def trained():
    return weights.load_generator("srresnet_mse")[0]


def _network(generator, path, calibration=()):
    layers = folding.fold(generator)
    statistics = litert.calibrate(layers, calibration) if len(calibration) else None
    model = openvino_model.build(layers, statistics)
    openvino.save_model(model, path, compress_to_fp16=False)
    return openvino_model.load(path, upscaling.receptive_field(generator))


def _middle(number, size):
    sample = pictures.read_rgb(pictures.sample_pictures()[number])
    top, left = ((side - size) // 2 for side in sample.shape[:2])
    return sample[top : top + size, left : left + size]


@pytest.mark.parametrize("filters", [8, 7])
@pytest.mark.parametrize("bits", [8, 16])
def test_float32_gives_what_keras_gives(tmp_path, filters, bits):
    generator = networks.build_generator(residual_blocks=2, filters=filters)
    rng = np.random.default_rng(1)
    generator.set_weights([w + rng.uniform(0, 0.1, w.shape) for w in generator.get_weights()])
    network = _network(generator, tmp_path / "net.xml")
    for lr in (photograph(12, 20), photograph(9, 7)):
        lr = lr if bits == 8 else lr.astype(np.uint16) * 257
        difference = upscaling.upscale(network, lr).astype(int) - upscaling.upscale(generator, lr)
        assert np.abs(difference).max() <= (1 if bits == 8 else 2)


def test_8_bits_come_within_a_few_levels_of_float_on_photographs(trained, tmp_path):
    exact = _network(trained, tmp_path / "float32.xml")
    network = _network(trained, tmp_path / "int8.xml", [_middle(i, 128) for i in (4, 5, 6)])
    losses = []
    for number in range(4):
        hr = _middle(number, 256)
        lr = resize.imresize(hr, (64, 64))
        expected, sr = upscaling.upscale(exact, lr), upscaling.upscale(network, lr)
        # Sums that overflow 16 bits would be off by dozens.
        assert np.abs(sr.astype(int) - expected).max() <= 8
        losses.append(metrics.psnr(expected, hr) - metrics.psnr(sr, hr))
    assert np.mean(losses) < 0.05
    assert not np.array_equal(sr, expected)  # it is in 8 bits, then


def test_pairs_of_weights_cannot_overflow_16_bits():
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=[3, 3, 16, 8]).astype(np.float32)
    kernel[1, 1, 4:6] = 9  # two neighbours, both large
    weights, _ = openvino_model._rounded(kernel, np.zeros(8), np.ones(16))
    stored = weights.input_value(0).get_node().input_value(0).get_node().data
    pairs = np.abs(stored.astype(int)).reshape(8, 8, 2, 3, 3).sum(axis=2)
    assert stored.dtype == np.int8 and pairs.max() * 255 < 2**15
    assert np.abs(stored).max() == 64  # and no more room is given away than that asks for


def test_a_tile_that_there_is_no_memory_for_is_a_memory_error(tmp_path):
    network = _network(networks.build_generator(residual_blocks=1, filters=8), tmp_path / "net.xml")
    lr = photograph(12, 9)[None]
    expected = network.call(lr)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no memory for 100000x100000"):
            network.call(np.broadcast_to(np.uint8(0), [1, 100_000, 100_000, 3]))
    np.testing.assert_array_equal(network.call(lr), expected)
