"""Annotation: models and detectors make the privileged parts that a source lacks, see docs/annotating.md.

They take their time, and may be asked for several parts: `ahead` runs them beside the preparation.
"""
