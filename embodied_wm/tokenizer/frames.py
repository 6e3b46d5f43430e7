"""Frame tokenizer: an image to K compact latent tokens of D channels, and back.

A strided convolutional pyramid ends in a small grid, which one more convolution turns into the grid of tokens (1x1
for one token a frame); or the frame becomes the places of key points (`tokenizer.keypoints`). Design choices, each
switchable by configuration:

- Reconstruction is weighted towards pixels that differ from the batch's mean image, so that small or rare objects
  are not averaged away.
- The decoder adds to a learned background image, which starts as the mean frame: a still camera's scene costs no
  capacity.
- SIGReg keeps latents near N(0, I), which is what a flow model starts from; a KL term (`bottleneck.kind=kl`) does it
  frame by frame, and `plannable` adds predictability and inverse dynamics. `scripts/study_tokenizer.py` compares them.
- Straightening penalises the curvature of latent trajectories, so that Euclidean distance in the latent space follows
  time, which is what a planner that minimises a latent distance needs. It uses no action labels: unlabelled video
  trains this tokenizer too.
- Decoding an imagined frame may carry over the last frame seen, where the imagination has not changed it. Compact
  latents blur what stands still; the camera has already shown it sharp. It needs no training. On a real wrist camera
  (CR5, 512 numbers a frame, 96 held-out starts, 4 frames ahead) adding what the reconstruction of the seen frame lost
  lifts decoded true frames from 28.9 to 31.4 dB where nothing changed, to 29.5 dB everywhere. Blending with the seen
  frame instead lifts imagined frames once more: CR5 from 22.5 to 23.2 dB (32 starts), `reach` at 8 steps from 25.6 to
  25.9 dB and from an SSIM of 0.87 to 0.95 (48 starts). A wider blend scores higher still and shows less of what the
  model imagines.

Latents leave `encode` standardised by statistics that are saved with the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from embodied_wm.tokenizer.bottleneck import BottleneckConfig, make_bottleneck
from embodied_wm.tokenizer.keypoints import PEAKED, STRIDE, KeypointDecoder, KeypointEncoder, turning_error

type LatentTerms = Callable[[Float[Tensor, "batch time size"]], tuple[Tensor, dict[str, float]]]

CHANGED = 0.12
"""Root mean square change around a decoded pixel, of a range of 2, at which the seen frame counts a third."""


def check_is_tensor(what: str, value: object) -> None:
    """Raise ValueError for arrays that are not PyTorch's."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"got {what} of type {type(value).__name__}; expected a torch.Tensor, such as torch.from_numpy(...)"
        )


@dataclass(frozen=True, kw_only=True)
class FrameTokenizerConfig:
    """Configure a `FrameTokenizer`.

    Attributes:
        image_size: (height, width) of one camera in pixels; each a multiple of 2 ** number of channels entries.
        cameras: Cameras whose pictures stand side by side in a frame, each with tokens of its own (`CameraTokenizer`).
        channels: Output channels of each stride-2 stage of the encoder; two for key points.
        token_grid: (rows, columns) of tokens; it must divide the final feature map.
        cells_per_token: (rows, columns) of neighbouring cells of the encoder's grid that one token concatenates. The
            predictor's cost grows with the number of tokens, so few wide ones are cheap; a convolution to small cells
            learns faster than one to wide tokens (CR5, after 200 steps: 16 cells of 32 channels decode to 23.7 dB, 4
            of 128 to 22.1 dB).
        keypoints: Places that a frame becomes, as one token of x and y of each, for scenes of a few things before a
            still camera; 0 for cells of channels. `bottleneck.width` must be twice as many.
        bottleneck: What stands between encoder and decoder.
        rare_weight: Extra weight of pixels that differ from the batch's mean image; 0 for a plain squared error.
        straightness_weight: Weight of the curvature penalty on latent trajectories.
        eager: Let key points leave the middle early: their first heat maps are peaked, and straightness and turning
            count only as far as what differs from the background is painted already.
        turning_weight: Weight of key points that do not follow a picture that is turned and moved
            (`keypoints.turning_error`); for square pictures.
    """

    image_size: tuple[int, int] = (64, 64)
    cameras: int = 1
    channels: tuple[int, ...] = (16, 32, 64, 128)
    token_grid: tuple[int, int] = (1, 1)
    cells_per_token: tuple[int, int] = (1, 1)
    keypoints: int = 0
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    rare_weight: float = 2.0
    straightness_weight: float = 0.1
    eager: bool = True
    turning_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that are none, and channels that no normalisation in groups can take."""
        for name in ("image_size", "token_grid", "cells_per_token"):
            sides = getattr(self, name)
            if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
                kind = "[height,width] in pixels" if name == "image_size" else "[rows,columns]"
                raise ValueError(f"{name}={list(sides)}: expected {kind}, two whole numbers of at least 1")
        if not self.channels or any(type(size) is not int or size < 1 or size % 8 for size in self.channels):
            raise ValueError(
                f"channels={list(self.channels)}: expected one number for each stage, at least one, and each a "
                "multiple of 8, the groups of the normalisation, such as [16,32,64,128]"
            )

    @property
    def num_tokens(self) -> int:
        """Return K, tokens per frame, of all cameras."""
        return self.token_grid[0] * self.token_grid[1] * self.cameras

    @property
    def frame_size(self) -> tuple[int, int]:
        """Return (height, width) of a frame, all cameras side by side."""
        return self.image_size[0], self.image_size[1] * self.cameras

    @property
    def of_one_camera(self) -> "FrameTokenizerConfig":
        """Return the configuration of one camera's tokenizer."""
        return replace(self, cameras=1)

    @property
    def token_width(self) -> int:
        """Return D, channels per token."""
        return self.bottleneck.width * self.cells_per_token[0] * self.cells_per_token[1]

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Return the FSQ levels of each channel where every token is one code; nothing where tokens are no codes."""
        is_code = self.bottleneck.kind == "fsq" and tuple(self.cells_per_token) == (1, 1)
        return tuple(self.bottleneck.levels) if is_code else ()

    @property
    def cell_grid(self) -> tuple[int, int]:
        """Return (rows, columns) of one camera's cells."""
        rows, columns = self.token_grid
        return rows * self.cells_per_token[0], columns * self.cells_per_token[1]


def _make_cells(config: FrameTokenizerConfig) -> tuple[nn.Module, nn.Module]:
    """Build the encoder to a grid of cells, [N, C, rows, columns], and the decoder from it to pixels."""
    stride = 2 ** len(config.channels)
    height, width = config.image_size
    if height % stride or width % stride:
        raise ValueError(
            f"image_size={config.image_size} must be a multiple of {stride} ({len(config.channels)} stride-2 stages); "
            f"resize the frames or change `channels`."
        )
    grid = (height // stride, width // stride)
    rows, columns = config.cell_grid
    if grid[0] % rows or grid[1] % columns:
        raise ValueError(
            f"token_grid={config.token_grid} times cells_per_token={config.cells_per_token} must divide the last "
            f"feature map {grid}"
        )
    kernel = (grid[0] // rows, grid[1] // columns)
    encoder: list[nn.Module] = []
    previous = 3
    for size in config.channels:
        encoder += [nn.Conv2d(previous, size, 4, stride=2, padding=1), nn.GroupNorm(8, size), nn.SiLU()]
        previous = size
    encoder += [nn.Conv2d(previous, config.bottleneck.encoded_width, kernel, stride=kernel)]
    decoder = [nn.ConvTranspose2d(config.bottleneck.width, previous, kernel, stride=kernel), nn.SiLU()]
    for size in (*reversed(config.channels[:-1]), None):
        decoder.append(nn.ConvTranspose2d(previous, size or 3, 4, stride=2, padding=1))
        if size:
            decoder += [nn.GroupNorm(8, size), nn.SiLU()]
            previous = size
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _make_keypoints(config: FrameTokenizerConfig) -> tuple[nn.Module, nn.Module]:
    """Build the encoder to key points, one cell of x and y of each, and the decoder from them to pixels."""
    checks = [
        (len(config.channels) == 2, f"channels={config.channels}", "two: widths at stride 2 and at stride 4"),
        (config.cell_grid == (1, 1), f"a grid of {config.cell_grid} cells", "token_grid=[1,1], cells_per_token=[1,1]"),
        (
            config.bottleneck.width == 2 * config.keypoints,
            f"bottleneck.width={config.bottleneck.width}",
            f"{2 * config.keypoints}, x and y of each",
        ),
        (config.bottleneck.kind != "kl", "bottleneck.kind=kl", "continuous: places have no variance"),
        (
            config.image_size[0] % STRIDE == 0 and config.image_size[1] % STRIDE == 0,
            f"image_size={config.image_size}",
            f"multiples of {STRIDE}",
        ),
    ]
    for valid, got, expected in checks:
        if not valid:
            raise ValueError(f"keypoints={config.keypoints} with {got}; expected {expected}.")
    return (
        KeypointEncoder(config.channels, config.keypoints, peaked=PEAKED if config.eager else 1.0),
        KeypointDecoder(config.channels, config.keypoints, config.image_size),
    )


class FrameTokenizer(nn.Module):
    """Encode frames into K tokens of D channels and decode them back."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: FrameTokenizerConfig) -> None:
        super().__init__()
        if config.turning_weight and not (config.keypoints and config.image_size[0] == config.image_size[1]):
            raise ValueError(
                f"turning_weight={config.turning_weight} with keypoints={config.keypoints} and "
                f"image_size={config.image_size}; expected key points in square pictures, or turning_weight=0"
            )
        if config.cameras != 1:
            raise ValueError(f"cameras={config.cameras}: a FrameTokenizer is of one; make it with `make_tokenizer`")
        self.config = config
        self.encoder, self.decoder = _make_keypoints(config) if config.keypoints else _make_cells(config)
        self.background = nn.Parameter(torch.zeros(3, *config.image_size))
        self.bottleneck = make_bottleneck(config.bottleneck)
        num_cells, width = config.cell_grid[0] * config.cell_grid[1], config.bottleneck.width
        self.register_buffer("latent_mean", torch.zeros(num_cells, width))
        self.register_buffer("latent_std", torch.ones(width))

    def check_frames(self, frames: UInt8[Tensor, "*batch height width 3"]) -> None:
        """Raise ValueError unless frames have this tokenizer's size."""
        check_is_tensor("frames", frames)
        if tuple(frames.shape[-3:]) != (*self.config.image_size, 3) or frames.dtype != torch.uint8:
            raise ValueError(
                f"got frames of shape {tuple(frames.shape)} and type {frames.dtype}; this model wants uint8 frames of "
                f"{self.config.image_size[0]}x{self.config.image_size[1]}x3. Import or collect at that image_size."
            )

    def _encode_cells(self, pixels_NCHW: Tensor) -> Tensor:
        grid = self.encoder(pixels_NCHW)
        return rearrange(grid, "n c h w -> n (h w) c")

    def _decode_cells(self, cells_NXC: Tensor) -> Tensor:
        rows = self.config.cell_grid[0]
        return self.background + self.decoder(rearrange(cells_NXC, "n (h w) c -> n c h w", h=rows))

    def reconstruct(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Encode and decode pixels in [-1, 1], with gradients and without the bottleneck."""
        return self._decode_cells(self._encode_cells(pixels)[..., : self.config.bottleneck.width])

    def _to_tokens(self, cells_NXC: Tensor) -> Tensor:
        """Concatenate the cells of each token: [N, K, D]."""
        (rows, columns), (high, wide) = self.config.token_grid, self.config.cells_per_token
        pattern = "n (h a w b) c -> n (h w) (a b c)"
        return rearrange(cells_NXC, pattern, h=rows, w=columns, a=high, b=wide)

    def _to_cells(self, tokens_NKD: Tensor) -> Tensor:
        """Undo `_to_tokens`."""
        (rows, columns), (high, wide) = self.config.token_grid, self.config.cells_per_token
        pattern = "n (h w) (a b c) -> n (h a w b) c"
        return rearrange(tokens_NKD, pattern, h=rows, w=columns, a=high, b=wide)

    @torch.no_grad()
    def fit_background(self, frames: UInt8[Tensor, "batch height width 3"]) -> None:
        """Start the decoder from the mean of some frames, so that it need only learn what differs from it."""
        self.background.copy_(to_pixels(frames).mean(0))

    def loss(
        self,
        frames_BTHWC: UInt8[Tensor, "batch time height width 3"],
        generator: torch.Generator,
        further: LatentTerms | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the training loss of a batch of windows and its parts.

        Args:
            frames_BTHWC: Consecutive frames; straightening needs at least three.
            generator: Source of SIGReg's projections, or of a posterior's sample.
            further: What else is asked of the latents [B, T, cells * channels] that `encode` keeps, such as
                `plannable.PlannableTerms`; it returns what is added to the loss, and metrics.
        """
        self.check_frames(frames_BTHWC)
        batch, time = frames_BTHWC.shape[:2]
        pixels = to_pixels(frames_BTHWC.flatten(0, 1))
        raw = self._encode_cells(pixels)
        bottled = self.bottleneck(raw, generator)
        reconstruction = self._decode_cells(bottled.latents)
        error = (reconstruction - pixels) ** 2
        rarity = (pixels - pixels.mean(0, keepdim=True)).abs().mean(1, keepdim=True)
        weight = 1 + self.config.rare_weight * rarity / rarity.mean().clamp_min(1e-4)
        reconstruction_loss = (error * weight).mean() / (1 + self.config.rare_weight)
        loss = reconstruction_loss + bottled.regulariser
        metrics = {"mse": float(error.detach().mean()), "regulariser": float(bottled.regulariser.detach())}
        painted = self._painted(pixels, error.detach())
        if time >= 3 and self.config.straightness_weight:
            means = raw[..., : self.config.bottleneck.width]
            path = rearrange(means, "(b t) k d -> b t (k d)", b=batch, t=time)
            step = path.diff(dim=1)
            spread = path.detach().var(dim=(0, 1)).mean().clamp_min(1e-4)
            straightness = step.diff(dim=1).square().mean() / spread
            loss = loss + self.config.straightness_weight * painted * straightness
            metrics["straightness"] = float(straightness.detach())
        if self.config.turning_weight:
            assert isinstance(self.encoder, KeypointEncoder)
            newest = slice(time - 1, None, time)  # one of each window: its frames differ little
            turning = turning_error(
                self.encoder, pixels[newest], raw[newest].flatten(1), self.background.detach(), generator
            )
            loss = loss + self.config.turning_weight * painted * turning
            metrics["turning"] = float(turning.detach())
        if further is not None:
            added, parts = further(rearrange(bottled.kept, "(b t) k d -> b t (k d)", b=batch, t=time))
            loss, metrics = loss + added, metrics | parts
        metrics["psnr"] = float(-10 * torch.log10((error.detach() / 4).mean((1, 2, 3)).clamp_min(1e-6)).mean())
        return loss, metrics

    def _painted(self, pixels_NCHW: Tensor, error_NCHW: Tensor) -> Tensor:
        """Return by what part key points that are eager paint what differs from the background; 1 for all others."""
        if not (self.config.keypoints and self.config.eager):
            return pixels_NCHW.new_ones(())
        missing = (pixels_NCHW - self.background.detach()).square().mean()
        return (1 - error_NCHW.mean() / missing.clamp_min(1e-6)).clamp(0, 1)

    @torch.no_grad()
    def encode(
        self, frames: UInt8[Tensor, "*batch height width 3"], chunk: int = 512
    ) -> Float[Tensor, "*batch tokens channels"]:
        """Encode frames into standardised latents.

        Args:
            frames: uint8 images of the configured size.
            chunk: Frames per pass, which bounds memory.
        """
        self.check_frames(frames)
        flat = frames.reshape(-1, *frames.shape[-3:])
        cells = [self.bottleneck(self._encode_cells(to_pixels(part))).latents for part in flat.split(chunk)]
        latents = self._to_tokens((torch.cat(cells) - self.latent_mean) / self.latent_std)
        return latents.reshape(*frames.shape[:-3], *latents.shape[-2:])

    @torch.no_grad()
    def decode(
        self,
        latents: Float[Tensor, "*batch tokens channels"],
        seen: UInt8[Tensor, "height width 3"] | None = None,
        chunk: int = 512,
    ) -> UInt8[Tensor, "*batch height width 3"]:
        """Decode standardised latents into uint8 frames.

        Args:
            latents: Of frames, seen or imagined.
            seen: A real frame of the same scene, usually the last one seen. It takes the place of the decoded frame
                wherever that does not differ from the seen frame's own reconstruction. None decodes latents alone.
            chunk: Frames per pass, which bounds memory.
        """
        cells = self._to_cells(latents.reshape(-1, *latents.shape[-2:])) * self.latent_std + self.latent_mean
        blend = self._blending(seen)
        frames = torch.cat([to_bytes(blend(self._decode_cells(part))) for part in cells.split(chunk)])
        return frames.reshape(*latents.shape[:-2], *frames.shape[-3:])

    def _blending(self, seen: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return what blends decoded frames into a seen one where nothing has changed since."""
        if seen is None:
            return lambda decoded_NCHW: decoded_NCHW
        self.check_frames(seen)
        pixels = to_pixels(seen[None])
        reconstruction = self._decode_cells(self.bottleneck(self._encode_cells(pixels)).latents)

        def blend(decoded_NCHW: Tensor) -> Tensor:
            change = (decoded_NCHW - reconstruction).square().mean(1, keepdim=True)
            change = F.avg_pool2d(F.pad(change, [2, 2, 2, 2], mode="replicate"), 5, stride=1)
            return decoded_NCHW + torch.exp(-change / CHANGED**2) * (pixels - decoded_NCHW)

        return blend

    @torch.no_grad()
    def fit_statistics(self, frames: UInt8[Tensor, "batch height width 3"]) -> None:
        """Set what makes `encode` standardised on these frames: each cell's own mean, and one std per channel.

        Cells share the std, so that one where nothing happens stays quiet: with a std of its own, specks there become
        as large as what moves elsewhere.
        """
        self.latent_mean.zero_()
        self.latent_std.fill_(1.0)
        cells = self._to_cells(self.encode(frames).flatten(0, -3))
        self.latent_mean.copy_(cells.mean(0))
        self.latent_std.copy_((cells - self.latent_mean).square().mean((0, 1)).sqrt().clamp_min(1e-3))


def to_pixels(frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """Turn bytes into floats in [-1, 1], channels first."""
    return rearrange(frames, "n h w c -> n c h w").float().div_(127.5).sub_(1.0)


def to_bytes(pixels: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch height width 3"]:
    """Turn floats in [-1, 1] into bytes, channels last; values outside are clipped."""
    return rearrange(pixels.add(1.0).mul(127.5).round().clamp(0, 255), "n c h w -> n h w c").to(torch.uint8)


def psnr(
    first: UInt8[Tensor, "*batch height width 3"], second: UInt8[Tensor, "*batch height width 3"]
) -> Float[Tensor, "*batch"]:
    """Return the peak signal-to-noise ratio of each pair of frames, in dB, capped at 60 dB (identical frames)."""
    error = F.mse_loss(first.float() / 255, second.float() / 255, reduction="none").mean((-3, -2, -1))
    return -10 * torch.log10(error.clamp_min(1e-6))
