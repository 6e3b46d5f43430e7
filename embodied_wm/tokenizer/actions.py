"""Latent actions: what was done between two frames, inferred from their latents alone, and an adapter to real actions.

An inverse model sees the latents before and after a transition and emits a small FSQ code; a forward model must
predict the latents after it from those before it and the code (Genie 2402.15391, LAPO 2312.10812). The code holds a
few bits (three channels of 9 levels: 9.5 bits), far less than a frame's latents, so it can carry what changed and not
the next frame itself. No action label is used. `ActionAdapter` then maps an embodiment's real actions to and from
codes, given the present latents, from a small labelled part.

What codes carry, one seed, on held-out episodes (`scripts/study_latent_actions.py figures`):

- `reach` (the model that ships: 12,000 steps, 4,000 of the adapter): R2 of true actions 0.85 [0.83, 0.87] by the linear
  probe, 0.91 [0.89, 0.93] by the model's own adapter; one imagined frame 5.6 dB [4.9, 6.6] better than with a random
  code; 8.9 of 9.5 bits in use. After 1,500 and 800 steps, the defaults, 0.79, 0.85, 5.6 dB and 8.1 bits.
- `push` (the model that ships, on 300 episodes that it never saw): 0.85 [0.83, 0.87] and 0.90 [0.88, 0.92]; 7.0 dB
  [6.5, 7.6]; 8.0 bits. Before it was trained on branches and random commands too: 0.79 and 0.88; 6.9 dB; 8.2 bits. On
  the key points of another seed, found by the same recipe, 0.40 [0.37, 0.43] and 0.60 [0.58, 0.62]; 4.9 dB [4.6, 5.2];
  8.1 bits: what codes say depends on the latents more than on the codes.
- With the code of another transition of the same episode the imagined frame is about as wrong as a copy of the last one
  (in latent units 0.018 against 0.020 on `push`, 0.058 against 0.041 on `reach`; with the right code 0.002 and 0.0025).
- A warning, by eye: in the picture of `reach` two of six codes, applied four times, bring five of six arms to nearly
  one pose. Two joints are little: 9.5 bits can name a pose, so these codes may say "go there" and not "turn by". On
  `push` the codes move the pusher alike from where it is.
- The normalisation in the networks' hidden layers is needed: without it the adapter's R2 on `reach` is 0.68, 0.73 and
  0.70 (three seeds) instead of 0.85, 0.86 and 0.86, and 0.66, 0.70 and 0.72 with a line beside each network. Expected
  was that it does harm. (A script that is not kept.)

One codebook for five robots, around one tokenizer (key points, 7,500 steps of codes in all, one seed): R2 through each
robot's adapter, beside that of a codebook of its own on the same latents after 1,500 steps (`scripts/
study_latent_actions.py robots --stores reach.zarr push.zarr pick_place.zarr cr5.zarr gr1.zarr --set
model=nano_keypoints`; expected was that sharing costs some):

    | robot           | actions | shared codebook     | own codebook        |
    |-----------------|---------|---------------------|---------------------|
    | reach           | 2       | 0.63 [0.61, 0.66]   | 0.59 [0.56, 0.62]   |
    | push            | 2       | 0.81 [0.80, 0.82]   | 0.83 [0.82, 0.84]   |
    | pick_place      | 5       | 0.45 [0.43, 0.47]   | 0.46 [0.44, 0.47]   |
    | cr5 (real)      | 7       | 0.33 [-6.67, 0.40]  | 0.31 [-6.48, 0.38]  |
    | gr1 (simulated) | 44      | -6.3                | -6.5                |

Sharing costs at most 0.02 (`push`). What is low is low for a codebook of its own too: 9.5 bits say less of more joints,
one camera does not show the depth of `pick_place`, and `reach` is read better from grids (0.85, above). An episode of
cr5 in which the arm hardly moves has no variance to explain, hence its interval; gr1 has five episodes, one of them
held out, and nothing of its 44 joints is read there by either.

An R2 of 0.9 is about what physics allows here: a command against a wall, a joint's stop or the box moves nothing, so no
code can say it. A linear probe that is told how the true state changed reaches 0.91 [0.88, 0.93] on `reach` and 0.89
[0.86, 0.91] on `push`; the inverse model's network, told the actions, reads 0.94 [0.92, 0.95] from the latents of
`reach` (`scripts/study_latent_codes.py ceiling --steps 3000`) and 0.87 [0.85, 0.88] from those of `push` (100 training
episodes, 800 steps, key points of the other seed). Other ways to train codes on `reach` bring little, more steps do
(`recipes`; RESULTS.md, "Latent actions").

Larger codes (`scripts/study_latent_codes.py sizes --model pretrained:push --store push.zarr`, 600 episodes, default
steps, one seed): a code that leaks the next frame would explain ever more of the change while no more of the action is
read from it. Expected was that beyond 9.5 bits. Up to 15.8 bits it is not so: both rise, and both little.

    | levels        | bits, in use | R2, adapter       | change explained | by another's code | over a random one |
    |---------------|--------------|-------------------|------------------|-------------------|-------------------|
    | 3             | 1.6, 1.6     | 0.48 [0.45, 0.51] | 0.65             | 0.32              | 2.0 dB            |
    | 9             | 3.2, 3.0     | 0.53 [0.50, 0.56] | 0.69             | 0.25              | 2.9 dB            |
    | 9, 9          | 6.3, 5.7     | 0.80 [0.77, 0.82] | 0.80             | -0.02             | 5.6 dB            |
    | 9, 9, 9       | 9.5, 8.1     | 0.87 [0.85, 0.89] | 0.87             | -0.19             | 6.6 dB            |
    | 9, 9, 9, 9    | 12.7, 9.9    | 0.89 [0.88, 0.90] | 0.92             | -0.31             | 7.2 dB            |
    | 9, 9, 9, 9, 9 | 15.8, 10.8   | 0.90 [0.89, 0.91] | 0.93             | -0.36             | 7.6 dB            |

On `reach` (`--model pretrained:reach --store reach.zarr`) both rise together too, R2 0.38, 0.41, 0.73, 0.85, 0.88 and
0.89, explained change 0.73, 0.79, 0.92, 0.95, 0.96 and 0.97; that so much is explained by codes that say so little of
the action is the warning above: they can name a pose.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from embodied_wm.tokenizer.bottleneck import BottleneckConfig, Quantised


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Build a SiLU network with a normalisation after every hidden layer."""
    layers: list[nn.Module] = []
    for first, second in pairwise(sizes[:-1]):
        layers += [nn.Linear(first, second), nn.RMSNorm(second), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


@dataclass(frozen=True, kw_only=True)
class LatentActionConfig:
    """Configure a `LatentActionTokenizer`.

    Attributes:
        levels: FSQ levels per code channel; their product is the number of codes.
        width: Hidden width of the inverse and forward models.
        history: Frames before the transition that both models see (2 shows velocity).
    """

    levels: tuple[int, ...] = (9, 9, 9)
    width: int = 256
    history: int = 2

    def __post_init__(self) -> None:
        """Refuse counts below 1, and levels that tell nothing apart."""
        if self.width < 1 or self.history < 1:
            raise ValueError(
                f"width={self.width}, history={self.history}: expected at least 1 each; history counts the frame that "
                "a transition begins with"
            )
        if not self.levels or any(type(level) is not int or level < 3 for level in self.levels):
            raise ValueError(
                f"levels={list(self.levels)}: expected the levels of each code channel, at least one channel and whole "
                "numbers of at least 3, such as [9,9,9]"
            )

    @property
    def code_size(self) -> int:
        """Return the number of code channels."""
        return len(self.levels)


class LatentActionTokenizer(nn.Module):
    """Infer a discrete code for each transition, and predict the next latents from past latents and a code."""

    def __init__(self, config: LatentActionConfig, *, num_tokens: int, token_width: int) -> None:
        super().__init__()
        self.config = config
        self.latent_shape = (num_tokens, token_width)
        size = num_tokens * token_width
        past = config.history * size
        self.inverse_model = mlp((past + size, config.width, config.width, config.code_size))
        self.forward_model = mlp((past + config.code_size, config.width, config.width, size))
        self.bottleneck = Quantised(BottleneckConfig(kind="fsq", width=config.code_size, levels=config.levels))

    def _past(self, latents_BTKD: Tensor) -> Tensor:
        """Stack `history` frames up to and including each frame: [B, T, history * K * D]; the first is repeated."""
        flat = latents_BTKD.flatten(-2)
        shifted = [flat]
        for _ in range(self.config.history - 1):
            shifted.append(torch.cat([shifted[-1][:, :1], shifted[-1][:, :-1]], dim=1))
        return torch.cat(shifted, dim=-1)

    def values(self) -> list[Float[Tensor, " levels"]]:
        """Return what each channel of a code can be; FSQ's even numbers of levels reach -1, but not 1."""
        device = next(self.parameters()).device
        return [(torch.arange(level, device=device) - level // 2) / (level // 2) for level in self.config.levels]

    def quantise(self, codes: Float[Tensor, "*batch code"]) -> Float[Tensor, "*batch code"]:
        """Round codes in [-1, 1] to the nearest FSQ levels; gradients pass as if they were not rounded."""
        half = torch.tensor([float(level // 2) for level in self.config.levels], device=codes.device)
        most = torch.tensor([float((level - 1) // 2) for level in self.config.levels], device=codes.device)
        rounded = (codes.detach().clamp(-1, 1) * half).round().minimum(most) / half
        return codes + (rounded - codes).detach() if codes.requires_grad else rounded

    def encode(self, latents: Float[Tensor, "batch time tokens width"]) -> Float[Tensor, "batch steps code"]:
        """Infer one code in [-1, 1] per transition; steps = time - 1."""
        past = self._past(latents)[:, :-1]
        return self.bottleneck(self.inverse_model(torch.cat([past, latents[:, 1:].flatten(-2)], dim=-1))).latents

    def predict(
        self, latents: Float[Tensor, "batch time tokens width"], codes: Float[Tensor, "batch time code"]
    ) -> Float[Tensor, "batch time tokens width"]:
        """Predict the latents that follow each frame, given the code of the transition."""
        change = self.forward_model(torch.cat([self._past(latents), codes], dim=-1))
        return latents + change.unflatten(-1, self.latent_shape)

    def loss(self, latents: Float[Tensor, "batch time tokens width"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the forward model's squared error, and how much of the change it explains."""
        codes = self.encode(latents)
        target = latents[:, 1:]
        error = F.mse_loss(self.predict(latents[:, :-1], codes), target)
        still = F.mse_loss(latents[:, :-1], target)
        metrics = {"mse": float(error.detach()), "explained": float(1 - error.detach() / still.clamp_min(1e-8))}
        return error, metrics


class ActionAdapter(nn.Module):
    """Map real actions to codes and codes to real actions, given the present latents.

    Real actions enter and leave normalised (zero mean, unit variance); `WorldModel` holds the statistics.
    """

    def __init__(self, *, latent_size: int, action_size: int, code_size: int, width: int = 128) -> None:
        super().__init__()
        self.to_code_network = mlp((latent_size + action_size, width, width, code_size))
        self.to_action_network = mlp((latent_size + code_size, width, width, action_size))

    def to_code(
        self, latents: Float[Tensor, "*batch tokens width"], actions: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "*batch code"]:
        """Return the code, not yet quantised, that stands for each real action."""
        return torch.tanh(self.to_code_network(torch.cat([latents.flatten(-2), actions], dim=-1)))

    def to_action(
        self, latents: Float[Tensor, "*batch tokens width"], codes: Float[Tensor, "*batch code"]
    ) -> Float[Tensor, "*batch action"]:
        """Return the real action that each code stands for."""
        return self.to_action_network(torch.cat([latents.flatten(-2), codes], dim=-1))

    def loss(
        self,
        latents: Float[Tensor, "*batch tokens width"],
        actions: Float[Tensor, "*batch action"],
        codes: Float[Tensor, "*batch code"],
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the sum of both directions' squared errors on labelled transitions."""
        code_error = F.mse_loss(self.to_code(latents, actions), codes)
        action_error = F.mse_loss(self.to_action(latents, codes), actions)
        return code_error + action_error, {
            "code_mse": float(code_error.detach()),
            "action_mse": float(action_error.detach()),
        }
