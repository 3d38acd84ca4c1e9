"""DigitsPipeline: the shipped digits model as a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor


class DigitsPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no annotations
    """Class-conditional pictures in pixel space, without an autoencoder: a transformer and a scheduler.

    `save_pretrained` and `DigitsPipeline.from_pretrained` write and read a folder of diffusers' own format.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw one picture for each label.

        eps = eps_uncond + guidance_scale (eps_cond - eps_uncond), both halves in one batch.
        `output_type`: "pil", "np" (N, H, W, C in [0, 1]), "pt" (N, C, H, W in [0, 1]) or "latent" (N, C, H, W in [-1, 1]).
        Raises ValueError for a label that the model has no class for.
        """
        config = self.transformer.config
        null_class = int(config.num_embeds_ada_norm)
        labels = [class_labels] if isinstance(class_labels, int) else list(class_labels)
        if not labels or any(not isinstance(label, int | np.integer) or not 0 <= label < null_class for label in labels):
            raise ValueError(f"DigitsPipeline: class_labels must be one or more integers of 0 to {null_class - 1}, got {class_labels!r}")
        device, dtype = self._execution_device, self.transformer.dtype
        both = torch.tensor([*labels, *[null_class] * len(labels)], device=device)
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype) * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            inputs = self.scheduler.scale_model_input(torch.cat([latents, latents]), t)
            cond, uncond = self.transformer(inputs, timestep=t.expand(len(both)), class_labels=both).sample.chunk(2)
            latents = self.scheduler.step(uncond + guidance_scale * (cond - uncond), t, latents).prev_sample
        self.maybe_free_model_hooks()
        if output_type == "latent":
            images = latents
        else:
            images = VaeImageProcessor(do_normalize=False).postprocess((latents / 2 + 0.5).clamp(0, 1), output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
