from lightning_nlf.modules.objective_module import ObjectiveModule as ObjectiveModule
from lightning_nlf.modules.phases import NonFiniteError as NonFiniteError
from lightning_nlf.modules.policy_module import PolicyModule as PolicyModule
