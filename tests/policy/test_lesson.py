"""A batch learned at once, in parts, and by several processes; and that no step waits."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from data.store import EpisodeStore
from data.types import Contract, Field
from policy.diffusion.loss import DenoisingLoss, Noised
from policy.diffusion.precond import X0
from policy.entry import compose_config
from policy.ranks import Ranks
from policy.train_run import Run, check_parts, prepare
from policy.trainer import Trainer

SMALL = ["batch_size=24", "precision=fp32", "device=cpu", "threads=1", "net.channels=[16,32]"]
# All that is random, and a count that differs from row to row.
RANDOM = [
    "draws=2",
    "augment.std=0.1",
    "loss.count_padding=false",
    "symmetry={_target_:data.augment.Mirror,share:0.5,fields:{state:${mirror_3},"
    "action:${mirror_2}},_convert_:all}",
]


def mirror(size: int) -> str:
    places, ones = list(range(size)), [-1] * size
    return (
        "{_target_:data.augment.SignedPermutation,"
        f"source:{places},sign:{ones},offset:{[0] * size}}}"
    )


def settings(*more: str) -> list[str]:
    told = [s.replace("${mirror_3}", mirror(3)).replace("${mirror_2}", mirror(2)) for s in RANDOM]
    return [*SMALL, *told, *more]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lesson") / "store.zarr"
    contract = Contract(
        observation={"state": Field(shape=(3,))}, action=Field(shape=(2,)), control_dt=0.1
    )
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(path, contract)
    for length in (30, 9, 21, 17):
        walk = rng.normal(size=(length, 5)).astype(np.float32)
        made.append({"state": walk[:, :3], "action": walk[:, 3:]})
    return path


def prepared(store: Path, *more: str, ranks: Ranks | None = None) -> Run:
    cfg = compose_config("train", [f"store.path={store}", *settings(*more)])
    return prepare(cfg, EpisodeStore.open(store), Path(), ranks)


def trained(run: Run, n_steps: int) -> tuple[dict[str, torch.Tensor], float]:
    for step in range(n_steps):
        run.trainer.step(run.dataset.batch(torch.arange(24) + step), 0.1)
    return dict(run.trainer.policy.state_dict()), run.trainer.mean_loss(n_steps)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, values in one.items():
        # Adam divides by the gradient's size, so that rounding errors of small ones show.
        torch.testing.assert_close(values, other[name], atol=2e-5, rtol=1e-4)


def test_parts_add_up_to_the_mean_over_the_counted_actions_of_all():
    """Levels 1, error e of each row, weight 1: sum of e^2 over counted ones / their number."""
    x0 = torch.zeros(4, 2, 1)
    is_pad = torch.tensor([[False, False], [False, True], [True, True], [False, True]])
    loss = DenoisingLoss(lambda n, length, _: torch.ones(n, length), 100.0, False)
    noised = loss.noised(
        x0, is_pad=is_pad, preconditioning=X0(), generator=torch.Generator().manual_seed(0)
    )
    errors = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def denoise(x, sigma, cond):
        return cond[:, None].expand(-1, 2)[..., None]

    parts = [
        noised.part(rows).loss(denoise, errors[rows]).item() for rows in (slice(0, 2), slice(2, 4))
    ]
    # Rows 0 (two actions), 1 and 3 (one each) count: 4 actions.
    assert parts == pytest.approx([(2 * 1 + 4) / 4, 64 / 4])
    assert noised.loss(denoise, errors).item() == pytest.approx((2 * 1 + 4 + 64) / 4)


def test_a_penalty_has_the_weight_of_its_rows():
    zeros = torch.zeros(8, 2, 1)
    noised = Noised(zeros, zeros, zeros[..., 0], zeros[..., 0], torch.tensor(1), size=8)
    shares = [
        noised.part(rows).loss(lambda x, *_: x, zeros, lambda *_: torch.tensor(3.0)).item()
        for rows in (slice(0, 2), slice(2, 8))
    ]
    assert shares == pytest.approx([3 * 2 / 8, 3 * 6 / 8])


@pytest.mark.parametrize("accumulate", [2, 6])
def test_parts_one_after_another_give_the_step_of_the_whole_batch(store, accumulate):
    whole, loss = trained(prepared(store), 4)
    parts, loss_of_parts = trained(prepared(store, f"accumulate={accumulate}"), 4)
    assert_same(whole, parts)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    start = prepared(store).trainer.policy.state_dict()
    assert any(not torch.equal(start[name], values) for name, values in whole.items())


ACCUMULATED = (1, 3)


def learn_as_rank(rank: int, store: Path, out: Path, size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/join", rank=rank, world_size=size)
    for accumulate in ACCUMULATED:
        run = prepared(store, f"accumulate={accumulate}", ranks=Ranks(rank, size))
        torch.save(trained(run, 4), out / f"{rank}_{accumulate}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(store, tmp_path_factory) -> Path:
    """What each of two processes learned, in one part and in several."""
    out = tmp_path_factory.mktemp("two")
    spawn(learn_as_rank, args=(store, out, 2), nprocs=2)
    return out


@pytest.mark.parametrize("accumulate", ACCUMULATED)
def test_two_processes_give_the_step_of_one(store, two_processes, accumulate):
    whole, loss = trained(prepared(store), 4)
    (one, its_loss), (other, _) = (
        torch.load(two_processes / f"{rank}_{accumulate}.pt") for rank in range(2)
    )
    assert_same(whole, one)
    assert its_loss == pytest.approx(loss, rel=1e-5)
    assert all(torch.equal(one[name], values) for name, values in other.items())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((256, 3, 1), r"batch_size is 256.* multiple of 3: give batch_size=255 or 258"),
        ((9, 2, 2), r"shared out among 2 processes with 2 parts each .*batch_size=8 or 12"),
        ((3, 1, 4), r"give batch_size=4$"),
        ((8, 0, 1), r"accumulate is 0, it must be at least 1"),
    ],
)
def test_a_batch_that_cannot_be_shared_out_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        check_parts(*sizes)


def test_the_configured_batch_is_checked(store):
    with pytest.raises(ValueError, match=r"multiple of 5: give batch_size=20 or 25"):
        prepared(store, "accumulate=5")


def test_a_trainer_without_parts_is_refused(store):
    trainer = prepared(store).trainer
    with pytest.raises(ValueError, match="accumulate is -1, it must be at least 1"):
        Trainer(
            trainer.policy,
            trainer.optimizer,
            ema=trainer.ema,
            loss=trainer.loss,
            augment=trainer.augment,
            accumulate=-1,
            seed=0,
            autocast=False,
        )


def test_a_lesson_is_not_cut_into_unequal_parts(store):
    run = prepared(store)
    lesson = run.trainer._lesson(run.dataset.batch(torch.arange(24)))
    with pytest.raises(ValueError, match="24 windows cannot be shared out among 5 parts"):
        lesson.part(0, 5)


class Syncs(TorchDispatchMode):
    """Counts what would wait for a GPU: to learn a number of it, or to bring it numbers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_sync = func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.lift_fresh.default,
        )
        self.count += is_sync
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_no_step_waits_for_the_device(store, form):
    run = prepared(store, f"form={form}", "accumulate=2")
    batch = run.dataset.batch(torch.arange(24))
    run.trainer.step(batch, 1.0)  # The optimiser's first step makes its state.
    with Syncs() as syncs:
        run.trainer.step(run.dataset.batch(torch.arange(24)), 1.0)
        assert syncs.count == 0
        run.trainer.mean_loss(1)
        assert syncs.count == 1
