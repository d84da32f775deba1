"""What is watched, written and guarded around a run."""
