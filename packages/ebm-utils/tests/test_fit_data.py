"""What `fit` takes as data: the same batches from all kinds, each epoch in its order."""

import pytest
import torch
from likelihoods import assert_same, likelihood
from persistent_run import run_data
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ebm_core import ConfigurationError
from ebm_utils import EightGaussians, fit


def test_each_epoch_visits_every_item_once_in_an_order_of_its_own():
    seen = []
    loss = likelihood()
    x = torch.arange(24.0).reshape(12, 2)

    def record(batch):
        seen.append(batch[:, 0].clone())
        return loss(batch)

    fit(record, x, epochs=2, batch_size=4, parameters=loss)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, x[:, 0])
    assert torch.equal(second.sort().values, x[:, 0])
    assert not torch.equal(first, second)


def test_all_kinds_of_data_give_the_same_batches():
    x, w = run_data(), torch.rand(100)

    class Numbered:
        def __len__(self):
            return 100

        def __getitem__(self, index):
            return x[index], w[index]

    losses = []
    for data in ((x, w), TensorDataset(x, w), Numbered()):
        loss = likelihood()
        fit(loss, data, epochs=2, batch_size=8)
        losses.append(loss)
    for loss in losses[1:]:
        assert_same(losses[0], loss)


def test_items_of_a_class_that_derives_are_its_own():
    class Augmented(TensorDataset):
        def __getitem__(self, index):
            return (super().__getitem__(index)[0] + 100.0,)

    class Far(EightGaussians):
        def __getitem__(self, index):
            return super().__getitem__(index) + 100.0

    for data in (Augmented(torch.zeros(8, 2)), Far(8)):
        seen, loss = [], likelihood()
        fit(lambda x, seen=seen, loss=loss: seen.append(x) or loss(x), data, n_steps=2,
            batch_size=4, parameters=loss)  # fmt: skip
        assert all((x > 50).all() for x in seen)


def test_a_loader_without_batches_is_refused():
    loader = DataLoader(TensorDataset(torch.zeros(8, 2)), batch_size=16, drop_last=True)
    with pytest.raises(ConfigurationError, match="no batches"):
        fit(likelihood(), loader, epochs=2)


def test_a_loader_that_shuffles_gives_the_batches_of_a_plain_loop():
    loader = DataLoader(TensorDataset(torch.arange(20.0)), batch_size=5, shuffle=True)
    torch.manual_seed(0)
    plain = [x for _ in range(3) for (x,) in loader]
    seen, weight = [], nn.Parameter(torch.zeros(()))

    def loss(x):
        seen.append(x)
        return (weight * x).sum()

    torch.manual_seed(0)
    fit(loss, loader, epochs=3, parameters=[weight])
    assert torch.equal(torch.stack(seen), torch.stack(plain))


def test_a_loader_of_unknown_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(run_data())

    loss = likelihood()
    assert fit(loss, DataLoader(Stream(), batch_size=60), n_steps=5).step == 5
    with pytest.raises(ConfigurationError, match="no known length"):
        fit(loss, DataLoader(Stream(), batch_size=60), epochs=2)


def test_data_that_can_be_read_only_once_end_with_an_error():
    class Once:
        batches = iter([run_data()])

        def __iter__(self):
            return self.batches

    with pytest.raises(ConfigurationError, match="ended after 1 batches, at step 2"):
        fit(likelihood(), Once(), n_steps=3)


def test_the_order_is_made_on_the_cpu():
    seen, x = [], run_data()
    parameter = nn.Parameter(torch.zeros(2))

    def loss(batch):
        seen.append(batch)
        return (parameter * batch).sum()

    with torch.device("meta"):  # stands for a default device that is not the data's
        sgd = torch.optim.SGD([parameter], lr=0.1)
        fit(loss, x, n_steps=2, batch_size=50, optimizer=sgd)
    assert torch.equal(torch.cat(seen).sort(0).values, x.sort(0).values)


def test_fresh_data_and_iterables():
    data = EightGaussians(64)
    by_step, by_list = likelihood(), likelihood()
    batches = [data.sample(16, seed=step) for step in range(4)]
    fit(by_step, lambda step: data.sample(16, seed=step % 4), n_steps=8)
    fit(by_list, [(batch,) for batch in batches], epochs=2)
    assert_same(by_step, by_list)
    finite, whole = likelihood(), likelihood()
    fit(finite, data, n_steps=2, batch_size=64, seed=None)
    fit(whole, [(data.data,)], n_steps=2)
    for a, b in zip(finite.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(batches)

    streamed = likelihood()
    fit(streamed, Stream(), n_steps=8)
    assert_same(by_step, streamed)
