"""What a server counts, in the text format of Prometheus (version 0.0.4)."""

import time
from collections import Counter, deque
from collections.abc import Mapping

import numpy as np

from policy.serving.errors import Code

# Quantiles are of so many newest calls.
WINDOW = 1000
QUANTILES = (0.5, 0.95, 0.99)


class Metrics:
    """Counts of one server."""

    def __init__(self):
        self.started = time.monotonic()
        self.n_requests = 0
        self.n_answers = 0
        self.n_handshakes = 0
        self.n_aborted = 0  # Connections of peers that did not read, or said too much.
        self.failures: Counter[Code] = Counter()
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._latency_sum = 0.0

    def add_latency(self, seconds: float) -> None:
        """The planner was called and took so long."""
        self.n_answers += 1
        self._latency_sum += seconds
        self._latencies.append(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All counts and the given present values, one metric a line."""
        counters = {
            "requests_total": self.n_requests,
            "answers_total": self.n_answers,
            "handshakes_total": self.n_handshakes,
            "aborted_total": self.n_aborted,
            "dropped_total": self.failures[Code.SUPERSEDED],
            "expired_total": self.failures[Code.EXPIRED],
        }
        lines = []
        for name, value in counters.items():
            lines += [f"# TYPE cadence_{name} counter", f"cadence_{name} {value}"]
        lines.append("# TYPE cadence_failures_total counter")
        lines += [f'cadence_failures_total{{code="{c}"}} {self.failures[c]}' for c in Code]
        lines.append("# TYPE cadence_inference_seconds summary")
        if self._latencies:
            values = np.quantile(self._latencies, QUANTILES)
            lines += [
                f'cadence_inference_seconds{{quantile="{q}"}} {value:.6f}'
                for q, value in zip(QUANTILES, values, strict=True)
            ]
        lines.append(f"cadence_inference_seconds_sum {self._latency_sum:.6f}")
        lines.append(f"cadence_inference_seconds_count {self.n_answers}")
        for name, value in {**gauges, "uptime_seconds": time.monotonic() - self.started}.items():
            lines += [f"# TYPE cadence_{name} gauge", f"cadence_{name} {value:g}"]
        return "\n".join(lines) + "\n"
