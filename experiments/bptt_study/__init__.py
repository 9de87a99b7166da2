"""Gradient estimators against exact backpropagation through time, and what fine-tuning gains."""
