"""The settings of a training, those of its stages among them."""

from dataclasses import dataclass, field

from embodied_wm.ranges import check_fractions, check_least
from embodied_wm.tokenizer.plannable import PlannableConfig
from embodied_wm.training.forcing import DistillationConfig, SelfForcingConfig
from embodied_wm.training.latents import MODES
from embodied_wm.training.loop import KeepConfig, StageConfig
from embodied_wm.training.observer import WatchConfig
from embodied_wm.training.processes import ComputeConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Configure the training of a world model.

    Attributes:
        tokenizer: Frame tokenizer stage; a batch is `batch_size` windows of three frames.
        latent_actions: Latent-action stage.
        adapter: Action-adapter stage.
        predictor: Predictor stage.
        distillation: Stage that makes one denoising step of many; left out with 0 steps.
        self_forcing: Stage on contexts that the predictor imagined itself; left out with 0 steps.
        readouts: Readout stage.
        temporal_distance: Stage of the steps between latents; left out where the model has no such readout.
        goal_policy: Stage of the policy that proposes ways to a goal; left out where the model has none.
        plannable: Further terms of the tokenizer stage; off by default.
        camera: Feature of the frames; "" takes the store's only camera.
        sequence_length: Frames per training window of the predictor.
        held_out_fraction: Last part of the episodes that training never sees.
        labelled_fraction: Part of the training episodes whose action labels (and readout targets) may be used.
        code_fraction: Part of the labelled sequences that are conditioned on latent codes instead of real actions.
        latents: Where the latents of the stages after the tokenizer come from: "memory" (encoded once), "zarr"
            (encoded once, into the run folder) or "online" (each batch anew).
        memory_budget_mb: What the tokenizer stage keeps of the frames in memory; the others it reads from the store.
        compute: What training runs on.
        keep: What is kept, and when training stops.
        watch: What is shown while it runs.
    """

    tokenizer: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=1000, batch_size=24, learning_rate=2e-3)
    )
    latent_actions: StageConfig = field(default_factory=lambda: StageConfig(num_steps=1500, batch_size=128))
    adapter: StageConfig = field(default_factory=lambda: StageConfig(num_steps=800, batch_size=256))
    predictor: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=1000, batch_size=32, learning_rate=2e-3, ema_decay=0.995)
    )
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    self_forcing: SelfForcingConfig = field(default_factory=SelfForcingConfig)
    readouts: StageConfig = field(default_factory=lambda: StageConfig(num_steps=800, batch_size=256))
    temporal_distance: StageConfig = field(default_factory=lambda: StageConfig(num_steps=12_000, batch_size=256))
    goal_policy: StageConfig = field(default_factory=lambda: StageConfig(num_steps=6000, batch_size=256))
    plannable: PlannableConfig = field(default_factory=PlannableConfig)
    camera: str = ""
    sequence_length: int = 10
    held_out_fraction: float = 0.1
    labelled_fraction: float = 1.0
    code_fraction: float = 0.15
    latents: str = "memory"
    memory_budget_mb: int = 2048
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        """Refuse an unknown source of latents, and numbers that nothing can be trained with."""
        if self.latents not in MODES:
            raise ValueError(f"latents={self.latents!r}: choose one of {', '.join(MODES)}")
        check_least(self, sequence_length=2, memory_budget_mb=0)
        check_fractions(self, held_out_fraction="(0, 1)", code_fraction="[0, 1]")
        if self.labelled_fraction == 0:
            raise ValueError(
                "labelled_fraction=0: expected a part in (0, 1]. A store without labels takes part in a training of "
                "several robots, as video alone: together.labelled=[1,0]"
            )
        check_fractions(self, labelled_fraction="(0, 1]")


__all__ = ["TrainConfig"]
