"""The same networks and the same step in PyTorch, with the weights of the Keras models."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def weights_of(model) -> dict[str, np.ndarray]:
    """All weights of a Keras model by "layer/variable"."""
    return {"/".join(w.path.split("/")[-2:]): w.numpy() for w in model.weights}


class _Loader:
    """Makes PyTorch layers of Keras weights."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.blocks = sum(name.endswith("_conv1/kernel") for name in weights)

    def conv(self, name: str, stride: int = 1, order: np.ndarray | None = None) -> nn.Module:
        kernel = self.weights[f"{name}/kernel"]
        bias = self.weights.get(f"{name}/bias")
        if order is not None:
            kernel, bias = kernel[..., order], bias[order]
        size, _, inputs, outputs = kernel.shape
        # Keras' "same" pads an even picture by 0 before and 1 behind where the stride is 2.
        padding = size // 2 if stride == 1 else 0
        layer = nn.Conv2d(inputs, outputs, size, stride, padding, bias=bias is not None)
        layer.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        if bias is not None:
            layer.bias.data = torch.from_numpy(bias.copy())
        return layer if stride == 1 else nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer)

    def batch_norm(self, name: str) -> nn.BatchNorm2d:
        gamma = self.weights[f"{name}/gamma"]
        layer = nn.BatchNorm2d(len(gamma), eps=1e-3, momentum=0.01)  # Keras' defaults
        layer.weight.data = torch.from_numpy(gamma.copy())
        layer.bias.data = torch.from_numpy(self.weights[f"{name}/beta"].copy())
        layer.running_mean = torch.from_numpy(self.weights[f"{name}/moving_mean"].copy())
        layer.running_var = torch.from_numpy(self.weights[f"{name}/moving_variance"].copy())
        return layer

    def prelu(self, name: str, order: np.ndarray | None = None) -> nn.PReLU:
        alpha = self.weights[f"{name}/alpha"].reshape(-1)
        if order is not None:
            alpha = alpha[order]
        layer = nn.PReLU(len(alpha))
        layer.weight.data = torch.from_numpy(alpha.copy())
        return layer

    def dense(self, name: str, rows: np.ndarray | None = None) -> nn.Linear:
        kernel, bias = self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"]
        if rows is not None:
            kernel = kernel[rows]
        layer = nn.Linear(*kernel.shape)
        layer.weight.data = torch.from_numpy(kernel.T.copy())
        layer.bias.data = torch.from_numpy(bias.copy())
        return layer


class _Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x):
        return x + super().forward(x)


def _shuffled(made: int) -> np.ndarray:
    """How to order channels out for a shuffle that gives so many.

    Keras' sub-pixel shuffle reads channels as (row, column, feature), PyTorch's as (feature, row,
    column).
    """
    return np.arange(4 * made).reshape(4, made).T.reshape(-1)


def generator(weights: dict[str, np.ndarray]) -> nn.Module:
    """`networks.build_generator`: from lr [N, 3, h, w] in [0, 1] to sr in [-1, 1]."""
    load = _Loader(weights)
    order = _shuffled(weights["upscale1_conv/bias"].size // 4)
    blocks = (
        _Residual(
            load.conv(f"block{i}_conv1"),
            load.batch_norm(f"block{i}_bn1"),
            load.prelu(f"block{i}_prelu"),
            load.conv(f"block{i}_conv2"),
            load.batch_norm(f"block{i}_bn2"),
        )
        for i in range(1, load.blocks + 1)
    )
    return nn.Sequential(
        load.conv("conv_in"),
        load.prelu("prelu_in"),
        _Residual(*blocks, load.conv("conv_trunk"), load.batch_norm("bn_trunk")),
        load.conv("upscale1_conv", order=order),
        nn.PixelShuffle(2),
        load.prelu("upscale1_prelu"),
        load.conv("upscale2_conv", order=order),
        nn.PixelShuffle(2),
        load.prelu("upscale2_prelu"),
        load.conv("conv_out"),
    )


def folded_generator(weights: dict[str, np.ndarray]) -> nn.Module:
    """`exporting.fold_batch_norm`'s model, the operations of the exported files."""
    load = _Loader(weights)
    order = _shuffled(weights["upscale1_conv/bias"].size // 4)
    blocks = (
        _Residual(
            load.conv(f"block{i}_conv1"),
            load.prelu(f"block{i}_conv1_prelu"),
            load.conv(f"block{i}_conv2"),
        )
        for i in range(1, load.blocks + 1)
    )
    return nn.Sequential(
        load.conv("conv_in"),
        load.prelu("conv_in_prelu"),
        _Residual(*blocks, load.conv("conv_trunk")),
        load.conv("upscale1_conv", order=order),
        load.prelu("upscale1_conv_prelu", order),
        nn.PixelShuffle(2),
        load.conv("upscale2_conv"),
        load.prelu("upscale2_conv_prelu"),
        load.conv("conv_out", order=_shuffled(3)),
        nn.PixelShuffle(2),
    )


def discriminator(weights: dict[str, np.ndarray], crop_size: int = 96) -> nn.Module:
    """`networks.build_discriminator`: from pictures [N, 3, H, W] to logits."""
    load = _Loader(weights)
    layers = [load.conv("conv1"), nn.LeakyReLU(0.2)]
    for i in range(2, 9):
        stride = 2 - i % 2
        layers += [load.conv(f"conv{i}", stride), load.batch_norm(f"bn{i}"), nn.LeakyReLU(0.2)]
    # Keras flattens [h, w, channels], PyTorch [channels, h, w].
    side = crop_size // 16
    rows = np.arange(weights["dense1/kernel"].shape[0])
    rows = rows.reshape(side, side, -1).transpose(2, 0, 1).reshape(-1)
    layers += [nn.Flatten(), load.dense("dense1", rows), nn.LeakyReLU(0.2), load.dense("logit")]
    return nn.Sequential(*layers)


class Features(nn.Module):
    """`vgg.build_features("block5_conv4", "vgg16")` behind `vgg.caffe_range`, times 1/12.75."""

    def __init__(self, weights: dict[str, np.ndarray]):
        """Takes `weights_of` the Keras features."""
        super().__init__()
        load = _Loader(weights)
        layers = []
        for block, count in enumerate((2, 2, 4, 4, 4), start=1):
            if block > 1:
                layers.append(nn.MaxPool2d(2))
            for i in range(1, count + 1):
                # VGG16 lacks three convolutions of VGG19, see `vgg._load_vgg16`.
                if f"block{block}_conv{i}/kernel" in weights:
                    layers += [load.conv(f"block{block}_conv{i}"), nn.ReLU()]
        self.layers = nn.Sequential(*layers).requires_grad_(False)
        mean = torch.tensor([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean)

    def forward(self, picture):
        """Gives phi of pictures in [-1, 1]."""
        return self.layers((picture.flip(1) + 1) * 127.5 - self.mean).float() * (4 / 12.75)


def make_step(networks: dict[str, nn.Module], lr, hr, autocast: bool):
    """Makes the training step of `gan.SRGAN`: one update of each network that is there.

    Args:
        networks: "generator"; with "discriminator" and "features" it is SRGAN-VGG54.
        lr: [N, 3, h, w] in [0, 1], channels_last.
        hr: [N, 3, 4h, 4w] in [-1, 1], channels_last.
        autocast: Compute in bfloat16.

    Returns:
        A function that makes a step and gives the losses before it: the generator's, and the
        discriminator's where there is one.
    """
    generator = networks["generator"]
    # A compiled network has no truth value: ask whether it is None.
    judge, features = networks.get("discriminator"), networks.get("features")
    adam = torch.optim.Adam(generator.parameters(), 1e-4, fused=True)
    if judge is not None:
        judge_adam = torch.optim.Adam(judge.parameters(), 1e-4, fused=True)

    def computing():
        return torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    def train_judge(sr):
        judge.requires_grad_(True)
        judge_adam.zero_grad()
        with computing():
            loss = functional.softplus(-judge(hr).float()).mean()
            loss = loss + functional.softplus(judge(sr).float()).mean()
        loss.backward()
        judge_adam.step()
        judge.requires_grad_(False)
        return loss

    def step():
        with computing():
            sr = generator(lr).float()
        found = [] if judge is None else [train_judge(sr.detach())]
        with computing():
            if features is not None:
                with torch.no_grad():
                    wanted = features(hr)
                loss = functional.mse_loss(features(sr), wanted)
            else:
                loss = functional.mse_loss(sr, hr)
            if judge is not None:
                loss = loss + 1e-3 * functional.softplus(-judge(sr).float()).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        return [each.item() for each in (loss, *found)]

    return step
