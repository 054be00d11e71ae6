"""Order of the windows, random streams and augmentation of a training run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.store import EpisodeStore
from data.types import Contract, Field
from policy.entry import compose_config
from policy.nets.experts import Experts
from policy.train import Run, prepare
from policy.trainer import NOISE, ORDER, WindowOrder, seeded


def test_an_epoch_visits_each_window_at_most_once():
    order = WindowOrder(10, 3, seed=0)
    assert order.steps_per_epoch == 3
    visited = torch.cat([order.indices(step) for step in range(3)])
    assert len(visited.unique()) == 9
    assert 0 <= int(visited.min()) <= int(visited.max()) < 10


def test_the_order_follows_from_seed_and_step_alone():
    straight = WindowOrder(100, 8, seed=3)
    expected = [straight.indices(step) for step in range(40)]
    resumed = WindowOrder(100, 8, seed=3)
    assert all(torch.equal(resumed.indices(step), expected[step]) for step in (39, 2, 15, 16))
    other = WindowOrder(100, 8, seed=4)
    assert not torch.equal(other.indices(0), expected[0])


def test_epochs_differ():
    order = WindowOrder(100, 100, seed=0)
    assert not torch.equal(order.indices(0), order.indices(1))
    assert torch.equal(order.indices(0).sort().values, torch.arange(100))


def test_an_epoch_visits_the_windows_it_is_told_in_an_order_of_its_own():
    told = {0: torch.tensor([7, 7, 3, 5]), 1: torch.tensor([1, 2, 3, 9])}
    order = WindowOrder(4, 2, seed=0, visits=told.__getitem__)
    plain = WindowOrder(4, 2, seed=0)
    for step in (3, 0, 2, 1):
        assert torch.equal(order.indices(step), told[step // 2][plain.indices(step)])


@pytest.mark.parametrize("batch_size", [0, 11])
def test_an_impossible_batch_size_names_the_limit(batch_size):
    with pytest.raises(ValueError, match="10 windows"):
        WindowOrder(10, batch_size, seed=0)


def test_random_streams_are_all_different():
    def draw(seed: int, purpose: int, count: int) -> float:
        generator = seeded(seed, purpose=purpose, count=count, device="cpu")
        return float(torch.rand((), generator=generator))

    draws = {draw(s, p, c) for s in range(4) for p in (ORDER, NOISE) for c in range(50)}
    assert len(draws) == 4 * 2 * 50


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    contract = Contract(
        observation={"state": Field(shape=(3,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    store = EpisodeStore.create(tmp_path_factory.mktemp("trainer") / "store.zarr", contract)
    rng = np.random.default_rng(0)
    for _ in range(4):
        episode = rng.normal(size=(40, 5)).astype(np.float32)
        store.append({"state": episode[:, :3], "action": episode[:, 3:]})
    return store


def prepared(store: EpisodeStore, *settings: str) -> Run:
    given = [f"store.path={store.path}", "device=cpu", "threads=1", "precision=fp32"]
    cfg = compose_config("train", [*given, "batch_size=64", *settings])
    return prepare(cfg, store, Path())


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_the_penalty_of_a_network_is_trained_on(store, balance):
    """The last layer is zero at first, so that the error itself reaches no router."""
    sizes = ["net=moe_small", "net.size=16", "net.n_layers=1"]
    trainer = prepared(store, *sizes, f"net.feed_forward.balance={balance}").trainer
    routers = [m.router for m in trainer.policy.modules() if isinstance(m, Experts)]
    trainer.step(prepared(store, *sizes).dataset.batch(torch.arange(64)), 1.0)
    gradients = [p.grad for router in routers for p in router.parameters()]
    largest = max(0.0 if g is None else float(g.abs().max()) for g in gradients)
    assert (largest > 0) == (balance > 0)


def test_the_penalty_is_asked_for_at_the_levels_as_the_network_sees_them(store):
    class Net(torch.nn.Module):
        def penalty(self, c_noise: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            asked.append(c_noise)
            return c_noise.sum() + cond.sum()

    asked = []
    policy = prepared(store, "net.channels=[8,16]").trainer.policy
    policy.net = Net()
    sigma = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    c_noise = policy.preconditioning(sigma).c_noise
    cond = torch.ones(3, 2)
    torch.testing.assert_close(policy.penalty(sigma, cond), c_noise.sum() + 6)
    assert torch.equal(asked[0], c_noise)
    assert not torch.equal(c_noise, sigma)


def test_layers_draw_the_same_whatever_was_drawn_before(store):
    weights = []
    for seed in (1, 2):
        sizes = ["net=transformer_small", "net.size=16", "net.n_layers=1"]
        run = prepared(store, *sizes, "net.attention_dropout=0.5")
        torch.manual_seed(seed)
        for step in range(3):
            run.trainer.step(run.dataset.batch(torch.arange(64) + step), 1.0)
        weights.append(run.trainer.policy.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_weights_that_are_not_finite_are_never_saved_and_earlier_ones_stay(store, tmp_path):
    run = prepared(store, "net.channels=[8,16]", "keep=1")
    run.out = tmp_path
    good = run.save()
    run.trainer.step_count += 1
    with torch.no_grad():
        next(run.trainer.policy.parameters()).view(-1)[0] = torch.nan
    for save in (run.save, run.save_unless_saved):
        with pytest.raises(ValueError, match="not finite at step 1 and are not saved: lower"):
            save()
    assert sorted(tmp_path.glob("checkpoints/step_*")) == [good]


def test_observation_noise_is_added_in_training_alone(store):
    run = prepared(store, "augment.std=0.2", "net.channels=[8,16]")
    seen = []
    for policy in (run.trainer.policy, run.trainer.ema.module):
        policy.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["state"]))
    batch = run.dataset.batch(torch.arange(64))
    plain = run.trainer.policy.features(batch.observation)["state"]
    run.trainer.step(batch, 1.0)
    run.trainer.validate(run.dataset, batch_size=64)
    noise = seen[0] - plain
    # 384 draws: the estimate scatters by std / sqrt(2 * 384).
    assert float(noise.std()) == pytest.approx(0.2, abs=4 * 0.2 / (2 * noise.numel()) ** 0.5)
    assert torch.equal(seen[1], plain)
