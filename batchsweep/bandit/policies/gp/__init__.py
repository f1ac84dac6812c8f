"""Policies on a Gaussian process over model, training step, depth and task."""
