"""Where bucket work runs: in threads of this process or on the nodes of a Ray cluster, through joblib either way."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import joblib

T = TypeVar("T")

EngineName = Literal["local", "ray"]

#: A cluster's head that has not answered by then is not there.
ANSWER_SECONDS = 10.0
#: Tasks per worker that a Ray cluster gets at a time.
GROUP_PER_WORKER = 8


class EngineError(ValueError):
    """The engine that was chosen cannot be used; the message names the remedy."""


_chosen: tuple[EngineName, str] = ("local", "")


def use_engine(name: EngineName, address: str = "") -> None:
    """Let all bucket work of this process run on ``name`` from now on; called once, where a process starts.

    Parameters
    ----------
    name : str
        ``local``: threads of this process (reading, the sweep and scoring leave the interpreter's lock). ``ray``:
        actors on the nodes of a Ray cluster; the lake must lie where all of them see it.
    address : str
        For ``ray``: ``host:port`` of the cluster's head; empty: the cluster this machine belongs to, else one started
        here for the life of the process.

    Raises
    ------
    EngineError
        If there is no such engine, or Ray is not installed. Ray is looked for, not imported: that takes seconds.
    """
    if name not in get_args(EngineName):
        raise EngineError(f"{name!r} is no engine; set KAIROS_ENGINE to one of {', '.join(get_args(EngineName))}")
    if name == "ray" and find_spec("ray") is None:
        raise EngineError("KAIROS_ENGINE is ray, which is not installed; run: pip install 'kairos-mail[ray]'")
    if address and not re.fullmatch(r"[^:/]+:\d+", address):
        raise EngineError(
            f"{address!r} is no Ray cluster; set KAIROS_ENGINE_ADDRESS to the host:port of its head, or to nothing"
        )
    global _chosen
    _chosen = (name, address)


def is_local() -> bool:
    """Whether bucket work runs in this process."""
    return _chosen[0] == "local"


def run(function: Callable[..., T], tasks: Iterable[tuple[Any, ...]], n_jobs: int = 1) -> Iterator[T]:
    """``function(*task)`` of every task, one by one in the order of the tasks; what was handed on is not kept.

    Parameters
    ----------
    function : callable
        Must pickle for ``ray``; it goes to each node once, however many tasks there are.
    tasks : iterable of tuple
        Taken as they are needed, so they may be made on the way.
    n_jobs : int
        Tasks worked on at a time. ``local``: -1 is one per core. ``ray``: 1 and -1 are every CPU of the cluster, since
        who configures a cluster means to use it; on a cluster of a single CPU the work stays in this process.

    Raises
    ------
    EngineError
        If the Ray cluster does not answer.
    """
    name, address = _chosen
    if name == "ray":
        return _run_on_ray(function, tasks, n_jobs, address)
    if n_jobs == 1:
        return (function(*task) for task in tasks)
    parallel = joblib.Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
    return iter(parallel(joblib.delayed(function)(*task) for task in tasks))


def _run_on_ray(function: Callable[..., T], tasks: Iterable[tuple[Any, ...]], n_jobs: int, address: str) -> Iterator[T]:
    ray = _joined(address)
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus == 0:
        raise EngineError(
            "the Ray cluster has no CPU; add a node with `ray start --address=…`, or set KAIROS_ENGINE=local"
        )
    workers = min(n_jobs, cpus) if n_jobs > 1 else cpus  # joblib would do a single job in this process
    shared = ray.put(function)
    waiting = iter(tasks)
    # Unless told so, Ray counts a pool's actors as free of charge and may start them all on one node.
    actors = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    with joblib.Parallel(n_jobs=workers, backend="ray", batch_size=1, ray_remote_args=actors) as parallel:
        # The Ray backend cannot hand results on as they come: in groups, only a group's results are held at a time.
        while group := list(islice(waiting, GROUP_PER_WORKER * workers)):
            yield from parallel(joblib.delayed(_call_shared)(shared, task) for task in group)


def _call_shared(shared: Any, task: tuple[Any, ...]) -> Any:
    """Run the function that lies in the object store of the node; from there, each node reads it over the wire once."""
    import ray

    return ray.get(shared)(*task)


def _joined(address: str) -> Any:
    """The module ``ray``, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports every start to its makers
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    logging.getLogger("ray.util.multiprocessing.pool").setLevel(logging.ERROR)  # it warns of what joblib passes to it
    if not ray.is_initialized():
        try:
            if address:  # Ray itself would try for minutes
                host, port = address.split(":")
                socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
            # Workers' output stays in Ray's own logs: ours may be JSON that a program reads.
            ray.init(address=address or None, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"at {address}" if address else "on this machine"
            raise EngineError(
                f"no Ray cluster {where}: {error}; start one with `ray start --head`, set KAIROS_ENGINE_ADDRESS to its "
                "host:port, or set KAIROS_ENGINE=local"
            ) from error
    return ray
