"""LlamaGen's image tokenizer VQ-16, the half that makes pixels of codes. Nothing here is trained.

Names, shapes and constants are those of the published `vq_ds16_t2i.pt`; its encoder, which training a policy never
needs, is left out. Source: FoundationVision/LlamaGen, `tokenizer/tokenizer_image/vq_model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CODE_WIDTH = 8
RESIDUALS = 3
"""Residual blocks at each resolution; the encoder has one less."""


class Residual(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = normalization(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        changed = self.conv1(F.silu(self.norm1(x)))
        changed = self.conv2(F.silu(self.norm2(changed)))
        return changed + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Every place of the image attends to every other; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = normalization(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        normed = self.norm(x_BCYX)
        q, k, v = (project(normed).flatten(2).mT for project in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v).mT
        return x_BCYX + self.proj_out(seen.reshape(x_BCYX.shape))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Resolution(nn.Module):
    """Blocks at one image size, and the step to the next."""

    def __init__(self, channels: int, out_channels: int, *, attends: bool, upsamples: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(Residual(channels if n == 0 else out_channels, out_channels) for n in range(RESIDUALS))
        self.attn = nn.ModuleList(Attention(out_channels) for _ in range(RESIDUALS if attends else 0))
        if upsamples:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for index, residual in enumerate(self.res):
            x = residual(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Decoder(nn.Module):
    def __init__(self, channels: int, multipliers: Sequence[int], latent: int) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in reversed(multipliers)]
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid = nn.Sequential(Residual(widths[0], widths[0]), Attention(widths[0]), Residual(widths[0], widths[0]))
        self.conv_blocks = nn.Sequential(
            *(
                Resolution(widths[max(n - 1, 0)], width, attends=n == 0, upsamples=n < len(widths) - 1)
                for n, width in enumerate(widths)
            )
        )
        self.norm_out = normalization(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.conv_blocks(self.mid(self.conv_in(latent)))
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class Codebook(nn.Module):
    def __init__(self, codes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, CODE_WIDTH)

    def forward(self, codes: Tensor) -> Tensor:
        """(..., 8), of length 1."""
        return F.normalize(self.embedding(codes), dim=-1)


class ImageDecoder(nn.Module):
    def __init__(self, *, codes: int, channels: int, multipliers: Sequence[int], latent: int) -> None:
        super().__init__()
        self.quantize = Codebook(codes)
        self.post_quant_conv = nn.Conv2d(CODE_WIDTH, latent, 1)
        self.decoder = Decoder(channels, multipliers, latent)

    def forward(self, codes_BHW: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X), -1 black to 1 white."""
        return self.decoder(self.post_quant_conv(self.quantize(codes_BHW).permute(0, 3, 1, 2)))  # type: ignore[no-any-return]


def normalization(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)
