"""What takes part in a latency benchmark computes what it is timed for."""

import torch

from policy.bench import make_policy, make_sampler
from policy.benches.latency import gather
from policy.benches.lineup import Group, Row
from policy.benches.stage import Stage
from policy.candidates import Subject
from policy.entry import compose_config


def stage_and_group():
    cfg = compose_config("bench", ["horizons.pred=8", "horizons.action=4"])
    policy = make_policy(cfg, "mlp")
    stage = Stage(policy, lambda row, n: make_sampler(cfg, row, n), device=torch.device("cpu"))
    return stage, Group("mlp", (Row("ddim_3", engine="fused"),), peers=())


def test_the_error_of_an_engine_stands_beside_its_time():
    contestants, _ = gather(*stage_and_group())
    errors = {each.name: each.error for each in contestants}
    error = errors["ddim_3, fused fp32"]
    assert error is not None
    assert error < 1e-4  # Rounding of fp32.


def test_an_engine_that_computes_something_else_is_not_timed(monkeypatch):
    fused = Subject.fused

    def wrong(subject):
        call = fused(subject)

        def off(*inputs):
            actions, *others = call(*inputs)
            return [2 * actions + 1, *others]

        return off

    monkeypatch.setattr(Subject, "fused", wrong)
    contestants, failures = gather(*stage_and_group())
    assert "ddim_3, fused fp32" not in {each.name for each in contestants}
    assert "off by" in failures["ddim_3, fused fp32"]
