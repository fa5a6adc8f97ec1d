"""Inference engine for language models: decoder, key-value cache, token loop and kernels. No yaml names its classes.

Decoder: `shape`, `decoder`, `attention`, `packing` for training, `cache` and `reader` for sampling, `limits`.
Next token: `token_distribution`. `generation` is the token loop, and `decode_graph` the token loop on a GPU.
Kernels for CPUs: `kernels`, in C++.
Hugging Face: `hf_folder` checks a model folder. `hf_config`, `hf_layout` and `hf_generation` read and write a folder
for our own decoder. `hf_model`, `hf_cache`, `hf_scores` and `hf_probe` are for models of transformers.
"""
