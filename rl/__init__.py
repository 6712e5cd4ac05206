"""Rolls out whole consultations, grades them, and trains the general practitioners by GRPO."""
