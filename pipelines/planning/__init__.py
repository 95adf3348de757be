"""What a run will take before anything runs: a measured sample, scaled; on cards that are not here, by rates."""
