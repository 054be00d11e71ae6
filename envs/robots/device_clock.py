"""A device's own timestamps, told on the computer's clock."""

# How much faster or slower than ours a device's clock may run. Cheap quartz is off by 5e-5.
DRIFT = 1e-4


class DeviceClock:
    """Finds out by how much a device's clock is off.

    A message that arrives at once shows it exactly, any other one makes the device's clock look
    late. So the least difference ever seen counts, and grows by what the clocks may drift apart
    (a device that was started anew has a new clock, so a stamp that goes back begins anew):

        arrival - stamp    *   .      *
                             *    . *    . *        (.) what counts
                          .          .
    """

    def __init__(self):
        self._offset: float | None = None  # s, to be added to a stamp
        self._stamp = 0.0  # s, of the last message

    def capture_time(self, stamp: float, *, arrival: float) -> float:
        """When something was sensed, on the computer's clock [s]; never after it arrived.

        Args:
            stamp: the device's time of it [s]; before that of the last call only where the device
                was started anew.
            arrival: when the computer had it, on its own clock [s].
        """
        seen = arrival - stamp
        if self._offset is None or stamp < self._stamp:
            self._offset = seen
        else:
            drifted = self._offset + DRIFT * (stamp - self._stamp)
            self._offset = min(seen, drifted)
        self._stamp = stamp
        return min(stamp + self._offset, arrival)  # The sum may round up.
