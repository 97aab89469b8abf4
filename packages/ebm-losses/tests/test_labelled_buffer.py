"""The labelled buffer alone: slots of the classes that are asked for, saving."""

import copy
import io

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_losses import LabelledReplayBuffer


def made(size=50, n_classes=4, **options):
    buffer = LabelledReplayBuffer(size, n_classes, **options)
    buffer.prepare((3,), device=torch.device("cpu"), dtype=torch.float64)
    return buffer


def test_slots_of_the_asked_classes_are_drawn_without_replacement_and_uniformly():
    torch.manual_seed(0)
    buffer, counts, labels = made(22, 4), torch.zeros(22), torch.tensor([2, 0, 2, 3, 2])
    for _ in range(2000):
        slots, chains = buffer.draw_for(labels)
        assert torch.equal(buffer.labels[slots], labels)
        assert len(slots.unique()) == 5
        assert torch.equal(chains, buffer.states[slots])
        counts[slots] += 1
    for label, asked in ((0, 1), (1, 0), (2, 3), (3, 1)):
        n_slots = int((buffer.labels == label).sum())
        p = asked / n_slots
        z = (counts[buffer.labels == label] - 2000 * p).abs() / (2000 * p * (1 - p) + 1e-9) ** 0.5
        assert z.max() < 4.5


def test_the_order_of_requests_of_a_class_does_not_decide_their_slots():
    torch.manual_seed(0)
    buffer, labels = made(8, 2), torch.tensor([1, 1])
    first = torch.stack([buffer.draw_for(labels)[0] for _ in range(2000)])
    assert abs((first[:, 0] < first[:, 1]).double().mean() - 0.5) < 4.5 * 0.5 / 2000**0.5


def test_classes_have_equally_many_slots_or_nearly_so():
    counts = LabelledReplayBuffer(50, 4).labels.bincount()
    assert counts.tolist() == [13, 13, 12, 12]


def test_chains_of_a_class_begin_anew_as_often_as_asked():
    torch.manual_seed(0)
    buffer = made(4000, 2, reinit_probability=0.3)
    buffer.states.fill_(7.0)
    _, chains = buffer.draw_for(torch.ones(2000, dtype=torch.long))
    assert abs(int((chains != 7.0).any(1).sum()) - 600) < 4.5 * (2000 * 0.21) ** 0.5


def test_labels_are_saved_and_chains_restored():
    buffer, file = made(), io.BytesIO()
    buffer.labels = buffer.labels.flip(0)
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    fresh = LabelledReplayBuffer(50, 4)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.labels, buffer.labels)
    assert torch.equal(fresh.states, buffer.states)
    assert torch.equal(copy.deepcopy(fresh).labels, buffer.labels)


@pytest.mark.parametrize("n_classes", (2, 8))
def test_labels_of_other_classes_are_refused_and_not_taken(n_classes):
    buffer, labels = LabelledReplayBuffer(50, n_classes), torch.arange(50) % n_classes
    with pytest.raises(RuntimeError, match=rf"labels.*of 4 classes.*n_classes is {n_classes}"):
        buffer.load_state_dict(made(50, 4).state_dict())
    assert torch.equal(buffer.labels, labels)


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigurationError, match="a slot for each class"):
        LabelledReplayBuffer(3, 4)
    with pytest.raises(ConfigurationError, match="prepare"):
        LabelledReplayBuffer(5, 4).draw_for(torch.tensor([0]))
    with pytest.raises(ConfigurationError, match="14 chains of the class 1, which has 13 slots"):
        made().draw_for(torch.ones(14, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="from 0 to 3"):
        made().draw_for(torch.tensor([4]))
