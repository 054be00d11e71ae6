"""Robots: simulated ones, and one file per real one.

A driver is a class with what `policy.types.Robot` asks for. It imports nothing of ours: whoever
makes it passes the clock, and what reads a contract. The governor stands between the policy and the
driver, so a driver needs no cleverness, but it must be honest:

* `read` and `command` return within a control tick; what blocks (a bus, a camera, a subscription)
  belongs to a thread of the driver, which keeps the newest message for `read`.
* `capture_time` is when something was sensed, on the clock that was passed; not when it was read.
  Where a device has a clock of its own, `envs.robots.device_clock` finds the offset.
* What is wrong with the robot is raised by `read` and `command` as a `RobotError`; `stop` raises
  nothing. `reset` may take its time: it gets the robot ready after a stop.
* `is_real` is true for whatever can do harm: then the configuration needs complete `limits`.
* The robot stops by itself when commands cease. If it has no watchdog, the driver's thread is one.

A robot with LeRobot's interface (`connect`, `get_observation`, `send_action`, `disconnect`, each a
dict with one entry a joint) becomes one of ours like this. A ROS 2 node differs in two places: its
subscription calls `_arrived` with the message's stamp, told on our clock by a `DeviceClock`, and
`command` publishes.

    import threading
    import numpy as np
    from envs.robots.errors import RobotLostError
    from envs.robots.sim import Reading, action_limits, checked_action

    class JointRobot:
        is_real = True

        def __init__(self, make_env, *, clock, read_contract, device, joints, limits, silence=0.1):
            entry = make_env().metadata["contract"]
            if entry["action"]["unit"] != "rad":
                raise ValueError(f"the device takes rad, the contract is in {entry['action']}")
            self.contract = read_contract(entry)
            self.limits = action_limits(entry["action"])
            self._clock, self._device, self._joints = clock, device, joints
            self._silence, self._is_open = silence, True
            device.connect()
            self._arrived(device.get_observation(), clock())
            threading.Thread(target=self._listen, daemon=True).start()

        def _listen(self):
            while self._is_open:
                asked = self._clock()  # The newest that it can be is as old as the question.
                self._arrived(self._device.get_observation(), asked)

        def _arrived(self, message, capture_time):
            joints = np.array([message[f"{name}.pos"] for name in self._joints], np.float32)
            self._newest = Reading({"joints": joints}, capture_time)  # one assignment: no lock

        def reset(self, seed):
            self.read()

        def read(self):
            reading = self._newest
            age = self._clock() - reading.capture_time
            if age > self._silence:
                raise RobotLostError(f"nothing new for {age:.3f} s: check the cable, then reset")
            return reading

        def pose(self):
            return self.read().fields["joints"].astype(float)

        def command(self, action, tick):
            action = checked_action(action, tick, shape=(len(self._joints),))
            action = np.clip(action, *self.limits)
            self._device.send_action(
                {f"{name}.pos": float(q) for name, q in zip(self._joints, action)}
            )

        def stop(self):
            joints = self._newest.fields["joints"]
            self._device.send_action(
                {f"{name}.pos": float(q) for name, q in zip(self._joints, joints)}
            )

        def close(self):
            self.stop()
            self._is_open = False
            self._device.disconnect()

Its file in `configs/robot` names the class with `_partial_: true`, as `configs/robot/ur.yaml` does.
"""
