"""The loop of fine-tuning: play, learn, evaluate, keep the best or go back to it."""

import time
from copy import deepcopy

import numpy as np
import torch

from policy.agent import NotFiniteError
from policy.budget import learning_rate_scale
from policy.finetune_evaluation import Measured
from policy.finetune_run import Run
from policy.guard import Verdict
from policy.interruption import ECHO, Interruption
from policy.metrics import MetricsWriter
from policy.progress import progress_bar
from policy.rl.rollout import Rollout, Tally, collect


def fit(run: Run) -> Verdict:
    """Train until the budget is spent, or the guard gives up, or Ctrl-C.

    Raises:
        KeyboardInterrupt: after Ctrl-C; everything is saved.
    """
    start = time.monotonic() - run.seconds
    folder = run.out if run.is_first_rank else run.out / f"rank_{run.ranks.rank}"
    with (
        MetricsWriter(folder / "metrics.jsonl") as metrics,
        MetricsWriter(folder / "timing.jsonl") as timing,
        Interruption(echo=ECHO if run.ranks.size > 1 else 0.0) as interruption,
        progress_bar(unit="step", initial=run.env_steps, is_hidden=not run.is_first_rank) as bar,
    ):
        metrics.truncate_after(run.iteration)
        timing.truncate_after(run.iteration)
        if run.best is None:
            consider(run, metrics)
        while (progress := run.progress()) < 1:
            if run.ranks.agree(float(interruption.requested)):
                run.save()
                raise KeyboardInterrupt
            verdict = iterate(run, metrics, timing)
            run.seconds = time.monotonic() - start
            progress = run.progress()
            is_due = run.iteration % run.cfg.evaluation.every == 0 or progress >= 1
            if verdict is Verdict.GO_ON and is_due:
                verdict = consider(run, metrics)
            if verdict is Verdict.GIVE_UP:
                break
            if run.iteration % run.cfg.save_every == 0:
                run.save()
            bar.total = round(run.env_steps / max(1e-9, progress))
            bar.update(run.env_steps - bar.n)
    run.save()
    return Verdict.GIVE_UP if run.guard.has_given_up else Verdict.GO_ON


def iterate(run: Run, metrics: MetricsWriter, timing: MetricsWriter) -> Verdict:
    """One rollout and one update."""
    set_rate(run)
    try:
        rollout, tally = play_chunks(run)
        begin = time.perf_counter()
        learned = run.learner.update(
            rollout, iteration=run.iteration, with_actor=run.actor_updates() >= 0
        )
    except FloatingPointError as error:
        run.iteration += 1
        return undo(run, run.guard.collapse(), str(error))
    updating = time.perf_counter() - begin
    run.iteration += 1
    run.env_steps += round(float(run.ranks.sum(torch.tensor(float(tally.env_steps)))))
    seconds = tally.simulating + tally.denoising + updating
    metrics.write(run.iteration, env_steps=run.env_steps, **learned, **played(tally))
    timing.write(
        run.iteration,
        seconds=round(run.seconds + seconds, 3),
        env_steps_per_second=tally.env_steps / seconds,
        simulating=tally.simulating / seconds,
        denoising=tally.denoising / seconds,
        updating=updating / seconds,
    )
    return Verdict.GO_ON


def set_rate(run: Run) -> None:
    """The actor's learning rate.

    It warms up once the critic has, falls along a cosine over the whole run, and is lower after
    each collapse.
    """
    scale = learning_rate_scale(
        run.actor_updates(),
        run.rate_progress(),
        warmup_steps=run.cfg.rate_warmup,
        end=run.cfg.get("rate_end", 1.0),  # Runs of older programs have none.
    )
    for group in run.learner.actor.optimizer.param_groups:
        group["lr"] = run.cfg.optimizer.lr * scale * run.guard.rate_scale


def play_chunks(run: Run) -> tuple[Rollout, Tally]:
    """A rollout that there is something to learn from.

    Raises:
        FloatingPointError: the policy's actions are no numbers, on any rank.
        ValueError: the environments give no reward, or numbers that are none.
    """
    fault, collected = "", None
    try:
        collected = collect(
            run.slots, run.behaviour(), n_chunks=run.cfg.chunks, iteration=run.iteration
        )
    except FloatingPointError as error:
        fault = str(error)
    if run.ranks.any(collected is None):
        raise FloatingPointError(fault or "in another process the policy's actions are no numbers")
    assert collected is not None
    rollout, tally = collected
    if not run.ranks.any(bool(rollout.is_valid.any())):
        raise ValueError(
            f"all {rollout.is_valid.numel()} chunks of iteration {run.iteration} ended with an "
            f"observation or a reward that is no number: mend the environment first"
        )
    is_rewarded = run.ranks.any(bool((rollout.rewards != 0).any()))
    has_success = run.evaluation.measure == "success" and run.guard.best > 0
    if run.iteration == 0 and not (is_rewarded or has_success):
        raise ValueError(
            f"none of the first {rollout.rewards.numel()} chunks had a reward: either the "
            f"environment does not report what `reward` asks for (try reward.total=1 or "
            f"reward.progress=1), or the checkpoint never succeeds, and has to be trained better "
            f"first"
        )
    if run.iteration == 0 and tally.n_cut:
        print(
            f"\nnote: {tally.n_cut} of {run.slots.n} episodes were cut at chunks={run.cfg.chunks}, "
            f"and are compared by what they reached until then: give as many as an episode has"
        )
    return collected


def played(tally: Tally) -> dict[str, float]:
    """Metrics of the episodes that are reported, where there are any."""
    measured: dict[str, float] = {
        "quarantined": tally.n_quarantined,
        "cut": tally.n_cut,
        "episodes": len(tally.episodes),
    }
    if tally.episodes:
        measured["train_success"] = float(np.mean([e.is_success for e in tally.episodes]))
        measured["train_return"] = float(np.mean([e.reward for e in tally.episodes]))
        measured["train_length"] = float(np.mean([e.length for e in tally.episodes]))
    return measured


def consider(run: Run, metrics: MetricsWriter) -> Verdict:
    """Evaluate, and keep the policy or go back to the best.

    Raises:
        NotFiniteError: the policy that is to be tuned predicts something that is not a number.
    """
    measured: Measured | None = None
    fault = ""
    if run.is_first_rank:
        try:
            measured = run.evaluation(run.policy())
        except NotFiniteError as error:
            if run.best is None:
                raise
            fault = str(error)
    judged = run.ranks.agree(np.nan if measured is None else run.evaluation.judged(measured))
    if np.isnan(judged):
        return undo(run, run.guard.collapse(), fault or "a prediction is no number")
    verdict = run.guard.judge(judged, is_rate=run.evaluation.measure == "success")
    if measured is not None:
        report(run, measured, metrics, is_best=verdict is Verdict.BEST)
    if verdict is Verdict.BEST:
        run.best = deepcopy(run.state())
        run.save_best()
        run.save()  # So that a resumed run never knows a policy better than its best one.
        return Verdict.GO_ON
    measure = run.evaluation.measure
    return undo(run, verdict, f"{measure} fell to {judged:.3g}, the best was {run.guard.best:.3g}")


def report(run: Run, measured: Measured, metrics: MetricsWriter, *, is_best: bool) -> None:
    """Print and write what an evaluation gave."""
    low, high = measured.success_interval
    print(
        f"\n{run.env_steps} steps, {run.seconds / 60:.1f} min: success {measured.success:.3f} "
        f"[{low:.3f}, {high:.3f}]  return {measured.total:.3f}{'  (best)' if is_best else ''}"
    )
    metrics.write(
        run.iteration,
        env_steps=run.env_steps,
        success=measured.success,
        success_low=low,
        success_high=high,
        score=measured.score,
        total=measured.total,
        total_low=measured.total_interval[0],
        total_high=measured.total_interval[1],
        seconds=round(run.seconds, 1),
    )


def undo(run: Run, verdict: Verdict, reason: str) -> Verdict:
    """Go back to the best weights where the guard says so; returns the verdict."""
    if verdict not in (Verdict.ROLL_BACK, Verdict.GIVE_UP):
        return verdict
    assert run.best is not None
    run.learner.load_state(run.best)
    run.since = run.iteration
    run.slots.restart(run.iteration)
    if run.is_first_rank:
        print(
            f"\ncollapse: {reason}; back to the best policy, of iteration {run.best['iteration']}"
        )
        if verdict is Verdict.ROLL_BACK:
            print(f"learning rate: {run.guard.rate_scale:g} of what it was configured as")
    return verdict
