"""A run: GRPO or SFT with LoRA, watched by held-out evaluation."""
