"""rftkit: learn and run Reinforcement Fine-Tuning. See README.md and notebooks/00_start_here."""

__version__ = "0.1.0"
