"""Generation servers: replies of a language policy sampled by another process, such as `vllm serve`."""

from lightning_nlf.generators.completions import Served
from lightning_nlf.generators.generator import Generator
from lightning_nlf.generators.lora_swap import LoRASwap
from lightning_nlf.generators.server import GeneratorStopped, Server
from lightning_nlf.generators.vllm import VLLMReplier
from lightning_nlf.generators.weight_transfer import WeightTransfer

__all__ = ["Generator", "GeneratorStopped", "LoRASwap", "Served", "Server", "VLLMReplier", "WeightTransfer"]
