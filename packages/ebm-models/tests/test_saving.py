"""Files of models: what comes back is the same energy; what cannot, says why; writes are whole."""

import json
import math
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import ebm_models
from ebm_core import ConfigurationError
from ebm_models import (
    BaseModel,
    BernoulliRBM,
    ClassifierEnergy,
    ConditionalEnergy,
    ConvEnergy,
    ConvNetwork,
    FourierFeatures,
    MLPEnergy,
    ModuleEnergy,
    ResidualNetwork,
    ResNetEnergy,
    constructor_arguments,
    load,
    load_into,
    register,
    save,
)


@register
class Tied(BaseModel):
    """A user's model: keywords, a tied weight, a buffer of integers."""

    def __init__(self, width, *, depth=2, **options):
        super().__init__(width, base_scale=options.get("base_scale"))
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("counts", torch.arange(depth))

    def network_energy(self, x):
        return self.second(self.first(x)).sum(1) * self.counts.sum()


class Unregistered(Tied):
    """Derives from a registered class, and is not registered."""


def rbm():
    model = BernoulliRBM(5, 3, weight_scale=0.5)
    model.initialize_from(torch.randint(0, 2, (20, 5)))
    return model


MODELS = {
    "MLP": lambda: MLPEnergy((2, 3), [8, 4], "tanh", base_scale=2, n_frequencies=3, input_gain=2.0),
    "RBM": rbm,
    "convolutions": lambda: ConvEnergy((1, 8, 8), (3, 4), spectral_norm=True),
    "residual": lambda: ResNetEnergy((1, 8, 8), channels=(3, 4), base_scale=1.5),
    "classifier": lambda: ClassifierEnergy(ConvNetwork((1, 8, 8), (3,), 4), 4, (1, 8, 8)),
    "conditional": lambda: ConditionalEnergy(
        ResidualNetwork((1, 8, 8), (3,), 2, 1), n_classes=2, event_shape=(1, 8, 8)
    ),
    "wrapped": lambda: ModuleEnergy(MLPEnergy(2, (4,)), 2, base_scale=1.0),
    "own": lambda: Tied(3, depth=4, base_scale=2.0),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def states(model):
    x = torch.randn(5, *model.event_shape, generator=torch.Generator().manual_seed(0))
    return (x > 0).float() if isinstance(model, BernoulliRBM) else x


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back(name, dtype, path):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    save(model, path)
    random = torch.get_rng_state()
    twin = load(path)
    assert torch.equal(random, torch.get_rng_state())
    assert type(twin) is type(model)
    state, own = twin.state_dict(), model.state_dict()
    assert list(state) == list(own)
    for key, value in own.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value)
    x = states(model).to(dtype)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    assert twin.event_shape == model.event_shape
    save(twin, path)  # what was rebuilt can be saved
    assert torch.equal(load(path).eval()(x), model(x))


def test_tied_weights_stay_tied(path):
    model = Tied(3).double()
    save(model, path)
    twin = load(path)
    assert twin.second.weight is twin.first.weight
    assert twin.first.weight.dtype == torch.float64
    assert len(list(twin.parameters())) == 3


def test_the_file_is_tensors_and_json(path):
    save(MLPEnergy(2, (8,), base_scale=3.0), path)
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["ebm_models"])
        assert "output.weight" in file.keys()  # noqa: SIM118
    assert description == {
        "format": 1,
        "class": "MLPEnergy",
        "arguments": {"event_shape": 2, "hidden": [8], "base_scale": 3.0},
    }
    assert constructor_arguments(MLPEnergy(2, (8,))) == {"event_shape": 2, "hidden": (8,)}


@pytest.mark.parametrize(
    ("make", "reason"),
    (
        (lambda: ModuleEnergy(nn.Sequential(nn.Linear(2, 1)), 2), "Sequential is not registered"),
        (lambda: MLPEnergy(2, (4,), torch.sin), "activation of MLPEnergy"),
        (lambda: ClassifierEnergy(nn.Linear(2, 3), 3, 2), "Linear is not registered"),
        (lambda: Unregistered(3), "Unregistered is not registered"),
        (lambda: Tied(3, slope=math.inf), "slope of Tied is inf"),
    ),
)
def test_others_are_filled_in(make, reason, path):
    model, other = make().double(), make()
    save(model, path)
    with pytest.raises(ConfigurationError, match=rf"{reason}.*load_into\(path, model\)"):
        load(path)
    x = torch.randn(4, *model.event_shape, dtype=torch.float64)
    assert load_into(path, other) is other
    assert torch.equal(other(x), model(x))


def test_a_model_that_does_not_fit_is_refused_and_left_alone(path):
    save(MLPEnergy(2, (8,)), path)
    with pytest.raises(ConfigurationError, match="MLPEnergy.*BernoulliRBM"):
        load_into(path, BernoulliRBM(3, 2))
    other = MLPEnergy(2, (9, 3)).double()
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ConfigurationError, match=r"hidden.0.bias: \(8,\) .* and 2 more"):
        load_into(path, other)
    after = list(other.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_files_of_others_are_refused(path, monkeypatch):
    with pytest.raises(ConfigurationError, match="no file of a model"):
        load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigurationError, match="no file of a model"):
        load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ConfigurationError, match="no file of a model"):
        load(path)
    save(MLPEnergy(2, (8,)), path)
    whole = path.read_bytes()
    for length in (4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigurationError, match="no file of a model"):
            load(path)
    monkeypatch.setattr(ebm_models.saving, "FORMAT", 2)
    path.write_bytes(whole)
    with pytest.raises(ConfigurationError, match="format is 1"):
        load(path)


@pytest.mark.parametrize(
    "description",
    (
        '{"format": 1, "arguments": {}}',
        '{"format": 1, "class": "MLPEnergy", "arguments": [2]}',
        '{"format": 1, "class": ["MLPEnergy"], "arguments": {}}',
        '{"format": 1, "class": "ModuleEnergy", "arguments": {"module": {"class": "MLPEnergy"}}}',
        '{"format": 1, "class": "ModuleEnergy", "arguments": {"module": {"model": [2]}}}',
        '{"format": 1, "class": "ModuleEnergy", "arguments": {"module": {"model": {}}}}',
        "[" * 100_000,
    ),
)
def test_files_with_a_strange_description_are_refused(description, path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"ebm_models": description})
    for read in (load, lambda path: load_into(path, nn.Linear(1, 1))):
        with pytest.raises(ConfigurationError, match="no file of a model"):
            read(path)


def test_arguments_that_are_nested_without_end_are_refused(path):
    nested = "[" * 900 + "]" * 900
    text = f'{{"format": 1, "class": "MLPEnergy", "arguments": {{"event_shape": {nested}}}}}'
    save_file({"weight": torch.zeros(2)}, path, metadata={"ebm_models": text})
    with pytest.raises(ConfigurationError, match="does not take"):
        load(path)


def test_a_replaced_network_is_not_rebuilt_as_the_old_one(path):
    model = ConditionalEnergy(ConvNetwork((1, 8, 8), (3,), 2), 2, (1, 8, 8))
    model.network = ConvNetwork((1, 8, 8), (3,), 2, "tanh")
    save(model, path)
    with pytest.raises(ConfigurationError, match="network of ConditionalEnergy was replaced"):
        load(path)
    twin = ConditionalEnergy(ConvNetwork((1, 8, 8), (3,), 2, "tanh"), 2, (1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(load_into(path, twin)(x), model(x))


def test_a_model_comes_back_on_the_cpu_whatever_the_default_device(path):
    model = MLPEnergy(2, (4,))
    save(model, path)
    with torch.device("meta"):
        twin = load(path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_classes_that_are_not_known_are_refused(path, monkeypatch):
    save(Tied(3), path)
    monkeypatch.delitem(ebm_models.saving._REGISTRY, "Tied")
    with pytest.raises(ConfigurationError, match="Tied, a class that is not registered here"):
        load(path)
    with pytest.raises(ConfigurationError, match="register"):
        constructor_arguments(Unregistered(2))


@pytest.mark.parametrize("fails", ("fsync", "replace"))
def test_a_write_that_fails_leaves_the_old_file(fails, path, monkeypatch):
    old = MLPEnergy(2, (8,))
    save(old, path)

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(ConfigurationError, match="no space left"):
        save(MLPEnergy(2, (4,)), path)
    assert os.listdir(path.parent) == [path.name]
    x = torch.randn(3, 2)
    assert torch.equal(load(path)(x), old(x))


def test_the_file_is_replaced_in_one_move(path, monkeypatch):
    """When it is moved it is complete: at no time is half a file in its place."""
    save(MLPEnergy(2, (8,)), path)
    seen = []
    move = os.replace

    def watch(source, target):
        seen.append((load(source).n_inputs, load(target).n_inputs))
        move(source, target)

    monkeypatch.setattr(os, "replace", watch)
    save(MLPEnergy(3, (8,)), path)
    assert seen == [(3, 2)]
    assert load(path).n_inputs == 3
    plain = path.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_what_cannot_be_saved_or_registered(path):
    class Extra(MLPEnergy):
        def get_extra_state(self):
            return {"step": 3}

    with pytest.raises(ConfigurationError, match="tensors alone"):
        save(Extra(2, (4,)), path)
    model = MLPEnergy(2, (4,))
    model.register_buffer("phases", torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(ConfigurationError, match="'phases'.*complex128"):
        save(model, path)
    with pytest.raises(ConfigurationError, match="instance"):
        save(MLPEnergy, path)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        save(MLPEnergy(2, (4,)), path.parent / "nowhere" / "model.safetensors")

    class Starred(nn.Module):
        def __init__(self, *sizes):
            super().__init__()

    with pytest.raises(ConfigurationError, match=r"takes \*args"):
        register(Starred)
    with pytest.raises(ConfigurationError, match="class of torch.nn.Module"):
        register(MLPEnergy(2))
    twin = type("MLPEnergy", (nn.Module,), {"__init__": lambda self: None})
    with pytest.raises(ConfigurationError, match="a name of its own"):
        register(twin)


def test_features_remember_too():
    assert constructor_arguments(FourierFeatures(2, 4)) == {"n_inputs": 2, "n_frequencies": 4}


def test_a_list_that_changes_later_is_remembered_as_it_was():
    widths = [8, 4]
    energy = MLPEnergy(2, widths)
    widths.append(2)
    assert constructor_arguments(energy)["hidden"] == [8, 4]
