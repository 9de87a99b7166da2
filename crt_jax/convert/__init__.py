"""Conversion of weights from and to other formats."""

# Formats of an exported folder.
SAFETENSORS = 'safetensors'
FORMATS = ('huggingface', SAFETENSORS)
