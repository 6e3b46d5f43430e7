"""Robot episodes at rest: one zarr store, windows of it, batches, statistics, and import from elsewhere."""

from embodied_wm.data.rollouts import record_rollouts

__all__ = ["record_rollouts"]
