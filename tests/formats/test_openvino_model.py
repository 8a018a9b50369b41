import numpy as np
import openvino
import pytest
from conftest import photograph
from PIL import Image, ImageDraw

from srgan_tf import folding, metrics, networks, pictures, resize, upscaling, weights
from srgan_tf.formats import keras_model, openvino_model, quantization
from srgan_tf.photos import fastest


def _network(generator, path, calibration=()):
    layers = folding.fold(generator)
    if len(calibration):
        model = openvino_model.quantized(layers, calibration)
    else:
        model = openvino_model.build(layers)
    openvino_model.write(model, path)
    return openvino_model.load(path)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The bundled weights in float32 and in 8 bits."""
    folder = tmp_path_factory.mktemp("forms")
    generator, _ = weights.load_generator("srresnet_mse")
    samples = [pictures.read_rgb(path) for path in pictures.sample_pictures()[4:]]
    calibration = [fastest._lr(sample, 128) for sample in samples]
    return _network(generator, folder / "a.xml"), _network(generator, folder / "b.xml", calibration)


@pytest.mark.parametrize("filters", [8, 7])
@pytest.mark.parametrize("bits", [8, 16])
def test_float32_computes_what_keras_computes(tmp_path, filters, bits):
    generator = networks.build_generator(residual_blocks=2, filters=filters)
    rng = np.random.default_rng(1)
    generator.set_weights([w + rng.uniform(0, 0.1, w.shape) for w in generator.get_weights()])
    network = _network(generator, tmp_path / "net.xml")
    in_tiles = network._replace(tile=2 * network.margin + 5, tail=network.tail._replace(tile=11))
    for lr in (photograph(12, 20), photograph(9, 7), photograph(65, 41), photograph(65, 9)):
        lr = lr if bits == 8 else lr.astype(np.uint16) * 257
        expected = upscaling.upscale(keras_model.compiled(generator), lr)
        for form in (network, in_tiles):
            difference = upscaling.upscale(form, lr).astype(int) - expected
            assert np.abs(difference).max() <= (1 if bits == 8 else 2)


def test_int8_is_within_a_few_levels_of_float_on_photographs(forms):
    losses = []
    for path in pictures.sample_pictures()[:4]:
        hr = pictures.middle(pictures.read_rgb(path), 256)
        lr = resize.imresize(hr, (64, 64))
        expected, sr = (upscaling.upscale(network, lr) for network in forms)
        in_tiles = forms[1]._replace(tail=forms[1].tail._replace(tile=40))
        assert np.abs(upscaling.upscale(in_tiles, lr).astype(int) - sr).max() <= 1
        # Sums that overflow 16 bits would be off by dozens.
        assert 0 < np.abs(sr.astype(int) - expected).max() <= 16
        losses.append(metrics.psnr(expected, hr) - metrics.psnr(sr, hr))
    assert np.mean(losses) < 0.03


def test_int8_holds_on_harder_pictures_than_those_of_calibration(forms):
    text = Image.new("RGB", (256, 256), "white")
    for top in range(5, 250, 20):
        fill = (0, 0, 0) if top % 3 else (255, 0, 0)
        ImageDraw.Draw(text).text((5, top), "Lorem ipsum dolor sit amet 0123456789", fill)
    checks = np.kron(np.indices([32, 32]).sum(axis=0) % 2, np.ones([8, 8], int))
    checks = np.repeat(255 * checks[..., None], 3, axis=-1).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, [256, 256, 3], np.uint8)
    for hr, most in ((np.asarray(text), 12), (checks, 24), (noise, 8)):
        lr = resize.imresize(hr, (64, 64))
        expected, sr = (upscaling.upscale(network, lr) for network in forms)
        assert np.abs(sr.astype(int) - expected).max() <= most
        assert metrics.psnr(sr, hr) > metrics.psnr(expected, hr) - 0.1


@pytest.mark.parametrize("channels", [16, 15])
def test_pairs_of_weights_cannot_overflow_16_bits(channels):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=[3, 3, channels, 8]).astype(np.float32)
    kernel[1, 1, 4:6] = 9  # two neighbors, both large
    inputs = rng.normal(size=[500, 9 * channels]) + 1
    read = quantization.Statistics(
        np.zeros(channels), np.ones(channels), np.ones(channels), inputs.T @ inputs
    )
    scaled, bias = openvino_model._rounded(kernel, np.zeros(8), read)
    stored, scales = (scaled.input_value(i).get_node() for i in (0, 1))
    stored = stored.input_value(0).get_node().data
    pairs = np.abs(stored.astype(int))[:, : channels // 2 * 2].reshape(8, -1, 2, 3, 3).sum(axis=2)
    assert stored.dtype == np.int8 and pairs.max() * 255 < 2**15
    assert 60 <= np.abs(stored).max() <= 68  # and no more room is given away than that asks for
    # For inputs of that mean the results keep theirs.
    lost = kernel.sum(axis=(0, 1, 2)) - (stored * scales.data).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(bias, lost, atol=1e-4)


@pytest.mark.parametrize(("bfloat16", "hint"), [(False, "f32"), (True, "bf16")])
def test_bfloat16_is_used_only_if_requested(tmp_path, monkeypatch, bfloat16, hint):
    asked = []

    class Core(openvino.Core):
        def set_property(self, *properties):
            asked.append(properties)
            super().set_property(*properties)

    layers = folding.fold(networks.build_generator(residual_blocks=1, filters=8))
    openvino_model.write(openvino_model.build(layers), tmp_path / "net.xml")
    monkeypatch.setattr(openvino, "Core", Core)
    network = openvino_model.load(tmp_path / "net.xml", bfloat16=bfloat16)
    assert upscaling.upscale(network, photograph(12, 9)).shape == (48, 36, 3)
    assert ("CPU", {"INFERENCE_PRECISION_HINT": hint}) in asked


def test_a_tile_too_large_for_memory_is_a_memory_error(tmp_path):
    network = _network(networks.build_generator(residual_blocks=1, filters=8), tmp_path / "net.xml")
    lr = photograph(12, 9)
    expected = upscaling.upscale(network, lr)
    for _ in range(2):
        with pytest.raises(MemoryError, match="no memory for 100000x100000"):
            network.tail.call(np.broadcast_to(np.float32(0), [1, 100_000, 100_000, 8]))
    np.testing.assert_array_equal(upscaling.upscale(network, lr), expected)


def test_rounding_to_the_least_error_beats_the_nearest_integers():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=[400, 72]) @ rng.normal(size=[72, 72])  # channels that depend
    kernel = rng.normal(size=[3, 3, 8, 5])
    scales = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    errors = {}
    for name, gram in (("nearest", None), ("least", inputs.T @ inputs)):
        read = quantization.Statistics(np.zeros(8), np.ones(8), np.zeros(8), gram)
        values = quantization.rounded(kernel, scales, read)
        errors[name] = np.square(inputs @ (values * scales - kernel).reshape(72, 5)).mean()
    assert errors["least"] < errors["nearest"] / 2
