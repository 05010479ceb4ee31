"""Handwritten digits, trained by clients of which one is hostile."""
