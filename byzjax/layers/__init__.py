"""Layers whose gradients are quick to take for many workers."""

from byzjax.layers.convolution import conv_general_dilated

__all__ = ["conv_general_dilated"]
