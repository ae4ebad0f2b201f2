"""Grids of runs and what they show: `dopd-vl study`."""
