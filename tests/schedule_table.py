"""The schedules of checkpoint_schedules for a loop of a given length, by name."""

import checkpoint_schedules as cs
from checkpoint_schedules import EndReverse, Forward, StorageType

SCHEDULES = {
    "SingleMemory": lambda n: cs.SingleMemoryStorageSchedule(),
    "SingleDisk": lambda n: cs.SingleDiskStorageSchedule(),
    "SingleDisk, moved": lambda n: cs.SingleDiskStorageSchedule(move_data=True),
    "Multistage": lambda n: cs.MultistageCheckpointSchedule(n, 3, 0),
    "Multistage, disk": lambda n: cs.MultistageCheckpointSchedule(n, 1, 2),
    "Revolve": lambda n: cs.Revolve(n, 2),
    "Revolve, one": lambda n: cs.Revolve(n, 1),
    "HRevolve": lambda n: cs.HRevolve(n, 2, 2),
    "DiskRevolve": lambda n: cs.DiskRevolve(n, 2),
    "PeriodicDiskRevolve": lambda n: cs.PeriodicDiskRevolve(n, 2),
    "Mixed": lambda n: cs.MixedCheckpointSchedule(n, 3),
    "Mixed, memory": lambda n: cs.MixedCheckpointSchedule(n, 2, storage=StorageType.RAM),
    "TwoLevel": lambda n: cs.TwoLevelCheckpointSchedule(3, 2),
    "TwoLevel, memory": lambda n: cs.TwoLevelCheckpointSchedule(4, 1, binomial_storage=StorageType.RAM),
}


def planned(name, steps):
    """How many time steps one execution evaluates, by the actions of the schedule alone."""
    schedule, count = SCHEDULES[name](steps), 0
    for action in schedule:
        if isinstance(action, Forward):
            count += min(action.n1, steps) - action.n0
            if schedule.max_n is None and action.n1 >= steps:
                schedule.finalize(steps)
        if isinstance(action, EndReverse):
            break
    return count
