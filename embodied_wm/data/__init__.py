"""Robot episodes at rest: one zarr store, windows of it, batches, statistics, and import from LeRobot."""
