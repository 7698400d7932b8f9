"""Work that is done unit by unit, by whoever is there: one worker or many, here, on other machines, in a queue.

A `Work` says what its units are and what is left of each, by what is on disk, and takes one. A worker takes units until
none is left to take (`worker`), through a lease in the folder that dies with it (`board`). Executors differ in how
workers are started and watched, and in nothing else: in this process (`executors`), in processes beside it (`local`),
in a queue (`slurm`). `run` keeps enough of them working until every unit is finished or given up, and says which were
(`coordinator`). Nothing is told but through the folder: whoever gives the same command on another machine joins.
"""

from mechrefusal.workers.coordinator import run
from mechrefusal.workers.local import prepare
from mechrefusal.workers.settings import EXECUTORS, LOCAL, Workers
from mechrefusal.workers.work import LOADING, Around, Work, alone

__all__ = ["EXECUTORS", "LOADING", "LOCAL", "Around", "Work", "Workers", "alone", "prepare", "run"]
