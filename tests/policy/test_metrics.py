"""Metrics survive crashes: torn lines are dropped, a resumed run writes the same file."""

import builtins

import pytest

from policy.metrics import MetricsWriter, read_metrics


def write_steps(path, steps):
    with MetricsWriter(path) as metrics:
        for step in steps:
            metrics.write(step, loss=1.0 / step, lr=0.1)


def test_lines_read_back_in_order(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write(10, loss=0.5)
        metrics.write(20, val_loss=0.25)
    assert read_metrics(path) == [{"step": 10, "loss": 0.5}, {"step": 20, "val_loss": 0.25}]


def test_a_line_is_on_disk_before_the_next_is_written(tmp_path):
    metrics = MetricsWriter(tmp_path / "metrics.jsonl")
    metrics.write(1, loss=0.5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'
    metrics.close()


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "\0\0\0", '{"step"', "12"])
def test_torn_last_line_is_dropped_and_never_glued_to_the_next(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2])
    with path.open("a") as file:
        file.write(torn)
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]
    write_steps(path, [3])
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3]


def test_interrupted_and_resumed_run_writes_the_file_of_an_uninterrupted_one(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write_steps(whole, range(1, 9))
    write_steps(resumed, range(1, 6))
    with MetricsWriter(resumed) as metrics:
        metrics.truncate_after(3)
    write_steps(resumed, range(4, 9))
    assert resumed.read_bytes() == whole.read_bytes()


def test_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_metric_is_an_error_and_leaves_the_file_whole(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write(1, loss=0.5)
        with pytest.raises(ValueError, match=r"'loss'.*step 2"):
            metrics.write(2, loss=value)
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[tensorboard\]'"):
        MetricsWriter(tmp_path / "metrics.jsonl", tensorboard=True)


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    with MetricsWriter(tmp_path / "metrics.jsonl", tensorboard=True) as metrics:
        metrics.write(1, loss=0.5, phase="warm-up")
        metrics.truncate_after(0)
        metrics.write(1, loss=0.5)
    assert list((tmp_path / "tensorboard").iterdir())
