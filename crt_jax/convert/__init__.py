"""Conversion of weights from and to other formats."""

# Of a folder that is written for others.
FORMATS = HUGGINGFACE, SAFETENSORS = 'huggingface', 'safetensors'
