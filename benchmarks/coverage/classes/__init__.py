"""Every denoising transformer of diffusers, small: how to build it with random weights, and what to call it with."""

from __future__ import annotations
