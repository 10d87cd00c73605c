"""Graders: OpenAI's grader JSON and presets evaluated here, and TRL reward functions."""
