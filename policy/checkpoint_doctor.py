"""What is wrong with a checkpoint, each finding with a code and what to do about it.

C001 error    there is no checkpoint             C005 error    it is of a newer program
C002 error    checkpoint.json cannot be used     C006 error    a weight is not finite
C003 error    a file is missing                  C007 warning  training cannot go on from it
C004 error    a file is truncated or altered     C008 warning  rest of an interrupted save
C009 error    no policy can be built from it (`cadence doctor` finds this)
"""

from pathlib import Path

import torch

from data.doctor import Finding
from policy.checkpoint import CheckpointError, load, load_trainer
from policy.sampler_fit import load_fit


def examine_checkpoint(path: Path | str) -> list[Finding]:
    """Everything that is wrong with a checkpoint; an empty list is a healthy one.

    Args:
        path: of a run, of its `checkpoints`, or of one checkpoint.
    """
    try:
        loaded = load(path)
    except CheckpointError as error:
        return [Finding(error.code, "error", error.problem, error.fix)]
    findings = []
    for name, tensor in loaded.policy_state.items():
        if not torch.isfinite(tensor).all():
            fix = "train again with a smaller optimizer.lr"
            findings.append(Finding("C006", "error", f"weight {name} is not finite", fix))
    try:
        load_trainer(loaded)
    except CheckpointError as error:
        problem = f"training cannot go on from it, evaluation can: {error.problem}"
        findings.append(Finding("C007", "warning", problem, error.fix))
    try:
        load_fit(loaded.path, chunk_shape=(loaded.horizons.pred, loaded.contract.action.size))
    except CheckpointError as error:
        findings.append(Finding(error.code, "error", error.problem, error.fix))
    for partial in loaded.path.parent.glob(".step_*"):
        problem = f"{partial} is the rest of an interrupted save"
        findings.append(Finding("C008", "warning", problem, "remove it; the next save would too"))
    return findings
