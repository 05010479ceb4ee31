"""Robust aggregation rules and meta-rules."""
