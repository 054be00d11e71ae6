"""What a robot's driver raises; an OSError, as everything else that a device does wrong."""


class RobotError(OSError):
    """The robot cannot be controlled any longer."""


class RobotLostError(RobotError):
    """The robot is gone: its process died, or the connection broke."""


class ProtectiveStopError(RobotError):
    """The robot's own safety system has stopped it, as after a collision."""


class EmergencyStopError(RobotError):
    """Somebody has pressed the emergency stop, or a safety device has tripped."""
