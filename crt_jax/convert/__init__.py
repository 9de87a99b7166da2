"""Conversion of weights from and to other formats."""

# Formats of an exported folder.
FORMATS = HUGGINGFACE, SAFETENSORS = 'huggingface', 'safetensors'
