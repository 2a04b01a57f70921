"""Work in the background: a workspace, a store of jobs, and workers that outlive the app.

The worker itself is `ders_core.jobs.worker`; a kind of job is one file of `ders_core.jobs.kinds`.
Importing this package imports neither torch nor dask.
"""

from ders_core.jobs.engine import Engine
from ders_core.jobs.job import Event, Job, Step, WorkerState
from ders_core.jobs.process import ensure_worker, start_worker_process
from ders_core.jobs.store import JobStore
from ders_core.jobs.which import Which
from ders_core.jobs.workspace import Workspace, default_workspace

__all__ = [
    "Engine",
    "Event",
    "Job",
    "JobStore",
    "Step",
    "Which",
    "WorkerState",
    "Workspace",
    "default_workspace",
    "ensure_worker",
    "start_worker_process",
]
