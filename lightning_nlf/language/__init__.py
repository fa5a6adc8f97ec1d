"""Inference engine for language models: what a text policy computes with, and no network that a yaml names.

Decoder: `shape`, `decoder`, `attention`, `packing` for training, `cache` and `reader` for sampling, `limits`.
Next token: `token_distribution`; `generation` is the token loop, `decode_graph` the same on a GPU.
Speed on a CPU: `kernels`, in C++.
Hugging Face: `hf_folder` checks a folder, `hf_config`, `hf_layout` and `hf_generation` read and write one for our own
decoder; `hf_model`, `hf_cache`, `hf_scores` and `hf_probe` serve models of transformers.
"""
