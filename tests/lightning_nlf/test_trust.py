"""Loading weights never runs code that the file names, whichever function loads it and wherever the name is."""

import contextlib
import itertools
import sys

import pytest
import torch

from lightning_nlf.cli.command_line import main
from lightning_nlf.experts import CheckpointExpert, CheckpointTextExpert
from lightning_nlf.maths.schedules import Linear
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.networks import GaussianPolicy, GRUReward
from lightning_nlf.objectives import BradleyTerryReward, InjectionPolicy
from lightning_nlf.scorers import CheckpointReward

MINE = """
from torch import nn, optim
from lightning_nlf.networks import GaussianPolicy, Policy
from lightning_nlf.objectives import ReinforcePolicy

class Adam(optim.Adam): ...
class Net(GaussianPolicy): ...
class Objective(ReinforcePolicy): ...

class Wrapped(Policy):
    def __init__(self, inner: Policy, head: nn.Module | None = None, activation: "Callable" = nn.ReLU, extra=None):
        super().__init__()
        self.inner = inner
"""
TRAINING = ("optimizer", "lr_scheduler")
PLACES = (*TRAINING, "network", "schedule", "_class_path")


def save_checkpoint(folder, module, class_path, **arguments):
    """Save a checkpoint with the parts that loading a module reads."""
    path = folder / "last.ckpt"
    hyperparameters = {
        "_class_path": class_path,
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    } | arguments
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": hyperparameters}, path)
    return path


def gaussian(class_path="lightning_nlf.networks.GaussianPolicy"):
    return {"class_path": class_path, "init_args": {"obs_dim": 4, "action_dim": 1, "hidden": [2]}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a package of the user and one of a stranger."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mypkg.py").write_text("from collections.abc import Callable\n" + MINE)
    code = "open('ran', 'w')\nclass Thing: ...\ndef run(*args, **kwargs): open('ran', 'w')\n"
    (tmp_path / "stranger.py").write_text(code)
    yield tmp_path
    for name in ("mypkg", "stranger"):
        sys.modules.pop(name, None)


@pytest.fixture
def policy(folder):
    arguments = {
        "policy": gaussian(),
        "imitation_weight": {"class_path": "lightning_nlf.maths.Linear", "init_args": {"start": 1.0, "over": 9}},
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.02}},
        "lr_scheduler": None,
    }
    module = InjectionPolicy(policy=GaussianPolicy(4, 1, [2]), imitation_weight=Linear(1.0, over=9))
    return save_checkpoint(folder, module, "lightning_nlf.objectives.InjectionPolicy", **arguments)


@pytest.fixture
def reward(folder):
    network = {"class_path": "lightning_nlf.networks.GRUReward", "init_args": {"vocabulary": 5, "width": 2}}
    module = BradleyTerryReward(reward=GRUReward(vocabulary=5, width=2))
    return save_checkpoint(
        folder, module, "lightning_nlf.objectives.BradleyTerryReward", reward=network, optimizer=None
    )


def poison(path, place, form):
    """Insert an object into a checkpoint that would create the file `ran`."""
    class_path, arguments = {
        "function": ("os.system", {"command": "touch ran"}),
        "class": ("subprocess.Popen", {"args": ["touch", "ran"]}),
        "module": ("stranger.Thing", {}),
        "name": ("stranger.run", None),
        "through us": ("lightning_nlf.checkpoint_io.os.system", {"command": "touch ran"}),
        "function of ours": ("lightning_nlf.cli.command_line.main", {"args": ["fit"]}),
        "function of torch": ("torch.nn.init.torch.hub.load", {"repo_or_dir": "nobody/nothing"}),
    }[form]
    checkpoint = torch.load(path, weights_only=True)
    hyperparameters = checkpoint["hyper_parameters"]
    spec = class_path if place == "_class_path" or arguments is None else spec_of(class_path, arguments)
    name = {"network": "policy" if "policy" in hyperparameters else "reward", "schedule": "imitation_weight"}.get(
        place, place
    )
    hyperparameters[name] = spec
    torch.save(checkpoint, path)
    return str(path)


def spec_of(class_path, arguments):
    return {"class_path": class_path, "init_args": arguments}


ROADS = {
    "load_from_checkpoint": ObjectiveModule.load_from_checkpoint,
    "expert": CheckpointExpert,
    "text expert": CheckpointTextExpert,
    "registry": lambda path: CheckpointExpert("models:/anything@champion"),
    "reward": CheckpointReward,
}
FORMS = ("function", "class", "module", "name", "through us", "function of ours", "function of torch")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "road, form", [*itertools.product(ROADS, FORMS[:4]), *(("load_from_checkpoint", form) for form in FORMS[4:])]
)
def test_nothing_that_a_checkpoint_names_is_run_or_imported(request, monkeypatch, folder, road, place, form):
    path = poison(request.getfixturevalue("reward" if road == "reward" else "policy"), place, form)
    monkeypatch.setattr("lightning_nlf.tracking.registry.fetch_registered", lambda name, uri: path)
    acts = place in TRAINING and form in ("function", "class", "module", "name")  # acting needs no optimizer
    if acts:
        ROADS[road](path)
    else:
        with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
            ROADS[road](path)
        assert "last.ckpt" in str(refused.value)
    assert not (folder / "ran").exists() and "stranger" not in sys.modules


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("argument", ["inner", "head", "activation", "extra"])
def test_nor_at_any_depth_of_a_network_that_is_trusted(folder, argument, form):
    from mypkg import Net, Objective, Wrapped

    wrapped = {"class_path": "mypkg.Wrapped", "init_args": {"inner": gaussian("mypkg.Net")}}
    path = save_checkpoint(folder, Objective(policy=Wrapped(Net(4, 1, [2]))), "mypkg.Objective", policy=wrapped)
    assert isinstance(ObjectiveModule.load_from_checkpoint(path, trust=["mypkg"]), Objective)
    inside = torch.load(path, weights_only=True)
    network = inside["hyper_parameters"]["policy"]["init_args"]
    torch.save({"hyper_parameters": {}}, folder / "part.ckpt")
    poison(folder / "part.ckpt", "network", form)
    network[argument] = torch.load(folder / "part.ckpt", weights_only=True)["hyper_parameters"]["reward"]
    torch.save(inside, path)
    if argument == "extra":  # this argument accepts any value
        with contextlib.suppress(ValueError):
            ObjectiveModule.load_from_checkpoint(path, trust=["mypkg"])
    else:
        with pytest.raises(ValueError, match=r"last\.ckpt: [^\n]+$"):
            ObjectiveModule.load_from_checkpoint(path, trust=["mypkg"])
    assert not (folder / "ran").exists() and "stranger" not in sys.modules


def test_what_the_caller_trusts_loads_and_nothing_else_does(folder):
    from mypkg import Net, Objective

    path = save_checkpoint(folder, Objective(policy=Net(4, 1, [2])), "mypkg.Objective", policy=gaussian("mypkg.Net"))
    sys.modules.pop("mypkg")
    for load in (ObjectiveModule.load_from_checkpoint, CheckpointExpert, CheckpointTextExpert):
        with pytest.raises(ValueError, match=r"names mypkg\.Objective, .* trust=\['mypkg'\] or --trust mypkg$"):
            load(str(path))
        with pytest.raises(ValueError, match=r"names mypkg\.Objective"):
            load(str(path), trust=["mypk", "mypkg.networks"])
        assert "mypkg" not in sys.modules
    assert type(CheckpointExpert(str(path), trust=["mypkg"]).policy).__module__ == "mypkg"
    with pytest.raises(ValueError, match="trust: expected a list of packages"):
        ObjectiveModule.load_from_checkpoint(path, trust="mypkg")


def test_an_optimizer_of_a_stranger_is_missed_in_training_only_and_saved_again(policy):
    poison(policy, "optimizer", "module")
    module = ObjectiveModule.load_from_checkpoint(policy)
    with pytest.raises(ValueError, match=r"last\.ckpt needs optimizer stranger\.Thing.*add the package to `trust`"):
        module.configure_optimizers()
    again = {"hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(again)
    assert again["hyper_parameters"]["optimizer"] == spec_of("stranger.Thing", {})


def test_an_optimizer_of_torch_goes_on_as_it_was(policy):
    module = ObjectiveModule.load_from_checkpoint(policy)
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.02
    mine = ObjectiveModule.load_from_checkpoint(policy, trust=["mypkg"], optimizer=spec_of("mypkg.Adam", {"lr": 0.5}))
    optimizer = mine.configure_optimizers()
    assert type(optimizer).__name__ == "Adam" and type(optimizer).__module__ == "mypkg"


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
@pytest.mark.parametrize("name", ["stranger.run", "os.system"])
def test_a_function_in_a_yaml_is_refused_before_it_is_called(folder, capsys, key, name):
    (folder / "stranger.py").write_text("def run(command=''): open('ran', 'w')\n")
    (folder / "run.yaml").write_text(
        f"""
model:
  class_path: lightning_nlf.objectives.ReinforcePolicy
  init_args:
    policy: {{class_path: lightning_nlf.networks.GaussianPolicy, init_args: {{obs_dim: 4, action_dim: 1}}}}
    {key}: {{class_path: {name}, init_args: {{command: touch ran}}}}
data: {{class_path: data_modules.pendulum.PendulumDataModule}}
"""
    )
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", "run.yaml"], run=False)
    message = capsys.readouterr().err
    assert ending.value.code == 2 and not (folder / "ran").exists()
    assert f"{key}.class_path (run.yaml, line 6): " in message and "is a function; give a class" in message
    assert message.count("\n") == 1


def test_the_command_line_trusts_what_its_flag_names(folder, capsys):
    from mypkg import Net, Objective

    save_checkpoint(folder, Objective(policy=Net(4, 1, [2])), "mypkg.Objective", policy=gaussian("mypkg.Net"))
    (folder / "run.yaml").write_text(
        """
trainer: {accelerator: cpu, logger: false}
model:
  class_path: lightning_nlf.objectives.ReinforcePolicy
  init_args:
    policy: {class_path: lightning_nlf.networks.GaussianPolicy, init_args: {obs_dim: 4, action_dim: 1}}
data:
  class_path: data_modules.pendulum.PendulumDataModule
  init_args:
    expert: {class_path: lightning_nlf.experts.CheckpointExpert, init_args: {checkpoint: last.ckpt}}
"""
    )
    with pytest.raises(SystemExit) as ending:
        main(["fit", "--config", "run.yaml"], run=False)
    message = capsys.readouterr().err
    assert ending.value.code == 2 and "names mypkg.Objective" in message and "--trust mypkg" in message
    cli = main(["fit", "--config", "run.yaml", "--trust", "mypkg"], run=False)
    assert type(cli.datamodule.expert.policy).__name__ == "Net"
