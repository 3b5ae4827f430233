"""A model on disk: config, rotary tables, tensor shapes, safetensors, tokenizer, chat template.

Refuses by name what is not supported.
Knows no device, no request and no strategy.
"""
