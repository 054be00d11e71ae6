"""The command `cadence <verb> [key=value ...]`: finds the verb, hands it the rest of the line."""

import importlib
import os
import signal
import sys
from types import FrameType

VERBS = {
    "demo": "the whole job on one command: collect, train, evaluate, run, and a report to look at",
    "collect": "record demonstrations of a scripted expert into a store",
    "train": "train a diffusion policy on a store of demonstrations",
    "fit": "fit to a checkpoint what samplers start from: grids of noise levels, anchors",
    "import": "bring the demonstrations of other formats into a store",
    "export": "write demonstrations in a format of others, or a policy as a package",
    "foresee": "give a checkpoint foresight: late chunks start from where the robot will be",
    "import_policy": "make a checkpoint of a published state-based Diffusion Policy",
    "finetune": "improve a checkpoint by reward: play, learn from it, keep the best",
    "evaluate": "measure a checkpoint on unseen starts: score and success with intervals, videos",
    "compare": "tell two evaluations on the same starts apart: who wins, and by chance or not",
    "frontier": "what each sampler gives for what it costs: success, calls, time, reaction",
    "delays": "success against the delay of inference, for each way to join late chunks",
    "run": "control a (simulated) robot in wall-clock time and report periods and latencies",
    "serve": "serve a checkpoint's plans to a robot over the network (ws://)",
    "calibrate": "measure how late a robot's readings are and how late it does what it is told",
    "edit": "hide, relabel, copy, merge and split the episodes of a store",
    "view": "look at episodes: pictures, state, actions and chunks, in a page or in files",
    "doctor": "say what is wrong with a store, a checkpoint or this machine, and how to mend it",
    "experts": "draw which experts of a checkpoint serve which noise levels",
    "bench": "measure how fast the parts run on this machine",
    "bench_experts": "measure what a mixture of experts costs, and a dense network of its size",
}


MODULES = {"import": "import_data"}  # of verbs that cannot be the name of one


def usage() -> str:
    """What `cadence --help` prints."""
    lines = [
        "usage: cadence <verb> [key=value ...]",
        "",
        "Diffusion policies for robots: from demonstrations to a controlled robot.",
        "",
        "verbs:",
        *(f"  {verb:<13} {what}" for verb, what in VERBS.items()),
        "",
        "cadence <verb> --help   lists the settings of a verb and the choices for each part",
        "experiment=NAME         selects a named run of configs/experiment",
        "out=DIR                 where to write (default: a fresh folder under outputs/<verb>)",
        "seed=N device=cpu|cuda  everywhere",
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point of the console command."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(usage())
        return
    verb = sys.argv.pop(1)
    if verb not in VERBS:
        print(f"cadence: no verb {verb!r}; choose one of {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    # Imports take seconds, and Ctrl-C raised inside them ends in whatever they make of it.
    previous = signal.signal(signal.SIGINT, _leave)
    module = importlib.import_module(f"policy.{MODULES.get(verb, verb)}")
    signal.signal(signal.SIGINT, previous)
    module.main()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: there is nothing to keep yet."""
    os.write(2, b"\ncadence: interrupted before it began\n")
    os._exit(130)


if __name__ == "__main__":
    main()
