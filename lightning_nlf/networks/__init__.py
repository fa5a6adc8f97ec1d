from lightning_nlf.language.shape import DecoderShape as DecoderShape
from lightning_nlf.networks.base import Network as Network
from lightning_nlf.networks.base import Policy as Policy
from lightning_nlf.networks.base import QValue as QValue
from lightning_nlf.networks.base import Reward as Reward
from lightning_nlf.networks.base import Value as Value
from lightning_nlf.networks.critics import QHead as QHead
from lightning_nlf.networks.critics import TransformerQValue as TransformerQValue
from lightning_nlf.networks.critics import TransformerReward as TransformerReward
from lightning_nlf.networks.critics import TransformerValue as TransformerValue
from lightning_nlf.networks.critics import ValueHead as ValueHead
from lightning_nlf.networks.gru import GRUPolicy as GRUPolicy
from lightning_nlf.networks.gru import GRUReward as GRUReward
from lightning_nlf.networks.gru import GRUValue as GRUValue
from lightning_nlf.networks.huggingface import HuggingFacePolicy as HuggingFacePolicy
from lightning_nlf.networks.huggingface_critics import HuggingFaceReward as HuggingFaceReward
from lightning_nlf.networks.huggingface_critics import HuggingFaceValue as HuggingFaceValue
from lightning_nlf.networks.lora import LoRA as LoRA
from lightning_nlf.networks.mlp import GaussianPolicy as GaussianPolicy
from lightning_nlf.networks.mlp import MLPQValue as MLPQValue
from lightning_nlf.networks.mlp import MLPValue as MLPValue
from lightning_nlf.networks.transformer import TransformerPolicy as TransformerPolicy

DecoderShape.__module__ = __name__  # yamls, the config.yaml of runs and MLflow use this path
