"""Measures held against models whose mechanism is known: `python -m calibration.ground_truth [--quick]`."""
