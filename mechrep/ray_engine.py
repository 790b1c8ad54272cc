"""Shards computed by the workers of a Ray cluster (``mechrep[ray]``); see :mod:`mechrep.engine`.

A worker is a Ray actor with a GPU or a share of the cores.  The model is put into Ray's object store once: on every
node its weights lie in shared memory, and the workers there map them.  A worker keeps model and job from one shard to
the next.  The shards of one that dies are computed again, and another worker takes its place.

Source: Ray's own documentation of actors, objects and fault tolerance; scheduling, transport and memory are Ray's.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import io
import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechrep.engine import Done, Engine, Job
from mechrep.errors import EngineError, InputError

_TRIES = 3  # workers that may die over one shard, or while they begin
_ANSWERS_SECONDS = 10.0  # until an address counts as silent
_HEALTH_SECONDS = 60.0  # the same for Ray, which takes its time to start and ask
_BEGINS_SECONDS = 180.0  # until a worker must have begun where no other one works
_AHEAD = 2  # shards per worker that may be finished before the one that all wait for


_engines: weakref.WeakSet[RayEngine] = weakref.WeakSet()  # of this process


class RayEngine(Engine):
    """Workers of a Ray cluster; they stay for all studies of a run, and go with this object.

    Args:
        workers: how many; by default one for each GPU of the cluster, or for each of its cores.
        address: of the cluster; by default the one that this process or ``RAY_ADDRESS`` knows, or a new one on this
            machine.
    """

    apart = True

    def __init__(self, *, workers: int | None = None, address: str | None = None) -> None:
        self.wanted, self.address = workers, address
        self.places: Places | None = None
        self.idle: list[Any] = []
        self.coming: dict[Any, tuple[Any, bool]] = {}  # by what they will say of themselves; whether they are new
        self.failed = 0  # workers that died while they began
        self._model: tuple[str, Any] | None = None  # the last one that was put into the store, with its fingerprint
        self._joined = ""
        _engines.add(self)

    @property
    def workers(self) -> int:
        """Workers that compute at the same time."""
        if self.places is None:
            self.begin()
        assert self.places is not None
        return self.places.workers

    def begin(self, on_gpu: bool | None = None) -> None:
        """Join the cluster, and share it out.

        Args:
            on_gpu: whether the model is on a GPU here; where this machine has none, workers use those of theirs.

        Raises:
            InputError: more workers than GPUs, or another address than that of the cluster that was joined.
            EngineError: a cluster that does not answer.
        """
        joined = _connect(self.address)
        if joined != self._joined:  # workers of a cluster that was left are no more
            self.rest()
            self._joined = joined
        without = not torch.cuda.is_available()
        places = places_on(_nodes(), self.wanted, with_gpu=without if on_gpu is None else on_gpu or without)
        if places != self.places:  # workers that are there have other shares
            self.idle, self.coming = [], {}
        self.places = places

    def work(self, job: Job, shards: Iterable[Any]) -> Iterator[Done]:
        """Compute shards; they come in their order.

        Raises:
            InputError: a model with hooks of the user's own, at work as another one, or on several devices; more
                workers than GPUs.
            EngineError: no cluster, no workers, others than here, or work that workers die of.
        """
        if job.model.steered or job.model.stands_for_another:
            raise InputError(
                f"{job.model.name!r} with hooks on it, for workers in other processes, where these are not",
                "a model as it was loaded",
                "take the hooks away or pass an intervention; or use engine='local'",
            )
        if len({weight.device for weight in _weights_of(job.model)}) > 1:
            raise InputError(
                f"{job.model.name!r}, which is spread over several devices",
                "a model on one device: a worker has one GPU",
                "use engine='local', which computes on all of them",
            )
        self.begin(on_gpu=job.model.device.type == "cuda")
        for other in _engines - {self}:
            other.rest()  # its workers hold cores or GPUs
        shift = _Shift(self, self._put(job), enumerate(shards))
        try:
            yield from shift.run()
        finally:
            self._dismiss(shift)

    def _put(self, job: Job) -> tuple[str, list[Any], str, list[Any]]:
        """Model and job in the object store, each with a key: lists, so that a worker fetches only what it lacks."""
        import ray
        from ray import exceptions

        key = job.model.fingerprint()
        try:
            if self._model is None or self._model[0] != key:
                self._model = None  # the old one may go before the new one comes
                self._model = key, ray.put(packed_model(job.model))
            order = packed(job, {id(job.model): "model"})
            return key, [self._model[1]], os.urandom(8).hex(), [ray.put(order)]
        except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as error:
            raise EngineError(
                f"{job.model.name!r} and its texts for an object store that is full",
                "room for all weights on every node",
                "start Ray with a larger --object-store-memory, or load the model in a smaller dtype",
            ) from error

    def rest(self) -> None:
        """Let workers go that have nothing to do; new ones come with new work."""
        self.idle, self.coming, self._model = [], {}, None

    def hire(self) -> None:
        """Let one more worker begin."""
        import ray

        assert self.places is not None
        here = self.places
        kind = ray.remote(_worker_class()).options(num_cpus=here.cpus, num_gpus=here.gpus, max_restarts=0)
        worker = kind.remote()
        self.coming[worker.hello.remote(here.threads)] = worker, True

    def call_up(self) -> None:
        """Workers for a new job: those of the last one, as far as they are still alive, and new ones."""
        assert self.places is not None
        for worker in self.idle:
            self.coming[worker.hello.remote(self.places.threads)] = worker, False
        self.idle = []
        while len(self.coming) < self.places.workers:
            self.hire()

    def welcome(self, ref: Any) -> None:
        """A worker has begun, or failed to.

        Raises:
            EngineError: it lacks mechrep or has other versions; or one worker after the other fails.
        """
        import ray
        from ray import exceptions

        worker, new = self.coming.pop(ref)
        try:
            check_versions(*ray.get(ref))
        except (exceptions.RayActorError, exceptions.RuntimeEnvSetupError) as error:
            self.failed += new
            if self.failed >= _TRIES:
                raise EngineError(
                    f"{self.failed} workers that died while they began ({_first_line(error)})",
                    "workers that begin",
                    "look at `ray logs cluster`; what is finished is kept",
                ) from error
            self.hire()
            return
        self.failed = 0
        self.idle.append(worker)

    def _dismiss(self, shift: _Shift) -> None:
        """Stop workers whose answers nobody waits for any more."""
        import ray

        for worker, *_ in shift.flying.values() if ray.is_initialized() else ():
            ray.kill(worker)


@dataclass
class _Shift:
    """One job's way through the workers.

    Attributes:
        engine: with the workers.
        order: model and job, as workers are told.
        queue: shards by number.
        flying: who computes what.
        again: shards whose worker has died.
        ready: finished ones that wait for those before them.
        taken: shards taken from the queue.
        given: answers given back.
        deaths: of workers, by shard.
    """

    engine: RayEngine
    order: tuple[Any, ...]
    queue: Iterator[tuple[int, Any]]
    flying: dict[Any, tuple[Any, int, Any]] = field(default_factory=dict)
    again: list[tuple[int, Any]] = field(default_factory=list)
    ready: dict[int, Done] = field(default_factory=dict)
    taken: int = 0
    given: int = 0
    deaths: Counter[int] = field(default_factory=Counter)

    def run(self) -> Iterator[Done]:
        """Answers in the order of the shards."""
        assert self.engine.places is not None
        first = self._next()
        if first is None:
            return
        self.again.append(first)
        self.engine.call_up()
        while True:
            self._give()
            while self.given in self.ready:
                done = self.ready.pop(self.given)
                self.given += 1
                yield done
                self._give()
            if not self.flying and not self.again and self.given == self.taken:
                return
            self._wait()

    def _next(self) -> tuple[int, Any] | None:
        """The next shard; none where the first unfinished one is far behind, or where there are no more."""
        if self.again:
            return self.again.pop()
        if self.taken - self.given >= _AHEAD * self.engine.workers:
            return None
        found = next(self.queue, None)
        self.taken += found is not None
        return found

    def _give(self) -> None:
        while self.engine.idle and (task := self._next()) is not None:
            worker = self.engine.idle.pop()
            self.flying[worker.work.remote(*self.order, task[1])] = (worker, *task)

    def _wait(self) -> None:
        import ray

        everything = [*self.flying, *self.engine.coming]
        done, _ = ray.wait(everything, num_returns=1, timeout=None if self.flying else _BEGINS_SECONDS)
        if not done:
            raise EngineError(
                f"{len(self.engine.coming)} workers that have not begun after {_BEGINS_SECONDS:.0f} seconds",
                "a cluster with free cores or GPUs",
                "see `ray status`; ask for fewer workers, or wait; what is finished is kept",
            )
        for ref in done:
            if ref in self.engine.coming:
                self.engine.welcome(ref)
            else:
                self._land(ref)

    def _land(self, ref: Any) -> None:
        """Take an answer; where its worker has died, see to another one."""
        import ray
        from ray import exceptions

        worker, number, shard = self.flying.pop(ref)
        try:
            answer, seconds = ray.get(ref)
        except exceptions.RayTaskError as error:
            self.engine.idle.append(worker)
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except exceptions.ObjectLostError:  # with the node that it lay on
            self.engine.idle.append(worker)
            self.again.append((number, shard))
        except exceptions.RayActorError as error:
            self.deaths[number] += 1
            if self.deaths[number] >= _TRIES:
                raise EngineError(
                    f"{_TRIES} workers that died over the same part of the work ({_first_line(error)})",
                    "workers with room for the model and for a batch",
                    "use fewer workers, larger machines or a smaller batch_size; what is finished is kept",
                ) from error
            self.again.append((number, shard))
            self.engine.hire()
        else:
            self.ready[number] = Done(shard, answer, seconds)
            self.engine.idle.append(worker)


def _weights_of(model: Any) -> Iterator[Tensor]:
    return (model.tl if model.plain is None else model.plain).parameters()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# --- the cluster ------------------------------------------------------------------------------------------------------


def _connect(address: str | None) -> str:
    """Join the cluster, or start one on this machine; a name for what was joined.

    Raises:
        InputError: another address than that of the cluster which this process has joined.
        EngineError: an address that does not answer, or a cluster of another version of Ray.
    """
    import ray
    from ray import exceptions

    named = address is not None and address != "auto" and "://" not in address
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if named and address != joined:
            raise InputError(
                f"address={address!r} in a process that has joined the cluster {joined!r}",
                "one cluster in a process",
                "call ray.shutdown() before, or leave the address out",
            )
        return ray.get_runtime_context().get_job_id()
    # By itself Ray would look for a cluster that somebody has started on this machine, or that was killed here.
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if found == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
        options = {"include_dashboard": False}
    elif found != "auto":
        _knock(found)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR, **options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there, which exits as if nothing were to be kept
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, exceptions.RayError) as error:
        raise _silent("this machine" if found == "local" else found, _first_line(error)) from error
    return ray.get_runtime_context().get_job_id()


def _silent(address: str, why: str) -> EngineError:
    return EngineError(
        f"the Ray cluster at {address!r} ({why})",
        "a cluster that answers, of the Ray version that is installed here",
        "start one (`ray start --head`), correct the address, or use engine='local', which goes on from the store",
    )


def _knock(address: str) -> None:
    """Is there a cluster?  Asked before Ray is, which ends the whole process where it waits for one in vain."""
    place = address.split("://")[-1]
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"address={address!r}", "'host:port', 'ray://host:port' or 'auto'", "correct it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _silent(address, _first_line(error)) from error
    if "://" in address:
        return
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", place]
    try:
        answer = subprocess.run(asked, capture_output=True, timeout=_HEALTH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _silent(address, f"no answer within {_HEALTH_SECONDS:.0f} seconds") from error
    if answer.returncode:
        raise _silent(address, "something answers there that is no Ray cluster")


@dataclass(frozen=True)
class Places:
    """What every worker gets.

    Attributes:
        workers: how many there are.
        cpus: cores of each, as Ray counts them; less than one where there are more workers than cores.
        gpus: GPUs of each, 0 or 1.
    """

    workers: int
    cpus: float
    gpus: int

    @property
    def threads(self) -> int:
        """Threads of torch in each."""
        return max(1, int(self.cpus))


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places_on(nodes: Sequence[Mapping[str, float]], workers: int | None, *, with_gpu: bool) -> Places:
    """Share a cluster among workers: a GPU each where it has some, or equal shares of the cores.

    Args:
        nodes: what each of them has, by Ray's names.
        workers: how many; by default as many as GPUs or cores.
        with_gpu: whether GPUs are to be used.

    Raises:
        InputError: more workers than GPUs.

    Example:
        >>> places_on([{"CPU": 8.0}, {"CPU": 4.0}], 3, with_gpu=True)
        Places(workers=3, cpus=4.0, gpus=0)
        >>> places_on([{"CPU": 16.0, "GPU": 2.0}], None, with_gpu=True)
        Places(workers=2, cpus=8.0, gpus=1)
    """
    cores, cards = ([int(node.get(name, 0)) for node in nodes] for name in ("CPU", "GPU"))
    on_gpu = with_gpu and sum(cards) > 0
    number = workers or (sum(cards) if on_gpu else max(1, sum(cores)))
    if on_gpu and number > sum(cards):
        raise InputError(f"workers={number} on {sum(cards)} GPUs", "one GPU for each", "ask for fewer")

    def room(threads: int) -> int:
        """Workers of so many cores each that the nodes have room for."""
        fits = [here // threads for here in cores]
        return sum(map(min, fits, cards) if on_gpu else fits)

    threads = next((some for some in range(max(cores, default=0), 0, -1) if room(some) >= number), 0)
    share = 0.0 if on_gpu else math.floor(1e3 * sum(cores) / number) / 1e3  # more workers than cores
    return Places(number, float(threads) or share, int(on_gpu))


def check_versions(where: str, versions: Mapping[str, str]) -> None:
    """Refuse a worker that would compute something else.

    Args:
        where: its node.
        versions: of packages, as it says.

    Raises:
        EngineError: a package is missing there, or another one.

    Example:
        >>> check_versions("10.0.0.7", {"mechrep": "0.0.1"})
        Traceback (most recent call last):
        mechrep.errors.EngineError: given: a worker on 10.0.0.7 with mechrep 0.0.1; ...
    """
    own = {name: importlib.import_module(name).__version__ for name in versions}
    other = [name for name in versions if versions[name] != own[name]]
    if other:
        given, expected = (", ".join(f"{name} {those[name]}" for name in other) for those in (versions, own))
        raise EngineError(
            f"a worker on {where} with {given}",
            f"{expected}, as in this process",
            "install the same on all nodes, or in the runtime_env of the cluster",
        )


# --- what travels -----------------------------------------------------------------------------------------------------


def packed(thing: Any, names: Mapping[int, str]) -> bytes:
    """An object as bytes, by value; some objects in it by name alone.

    Args:
        thing: the object.
        names: of objects that the other side has, by their identity.

    Raises:
        EngineError: something that cannot be sent.
    """
    from ray import cloudpickle

    class Packer(cloudpickle.CloudPickler):  # pyright: ignore[reportPrivateImportUsage]
        def persistent_id(self, one: Any) -> str | None:
            return names.get(id(one))

    file = io.BytesIO()
    try:
        Packer(file, protocol=5).dump(thing)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise EngineError(
            f"work that cannot be sent to another process ({_first_line(error)})",
            "analyzers, texts and interventions that can be copied",
            "use engine='local'",
        ) from error
    return file.getvalue()


def unpacked(data: bytes, things: Mapping[str, Any]) -> Any:
    """The reverse of :func:`packed`.

    Args:
        data: bytes.
        things: the named ones.

    Raises:
        EngineError: a module is missing here.
    """

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, name: str) -> Any:
            return things[name]

    try:
        return Unpacker(io.BytesIO(data)).load()
    except ModuleNotFoundError as error:
        raise EngineError(
            f"a worker without the module {error.name!r}", "the modules of this process", "install it on all nodes"
        ) from error


_Weights = list[tuple[np.ndarray, torch.dtype, tuple[int, ...], bool | None]]


def packed_model(model: Any) -> tuple[bytes, _Weights]:
    """A model without its tensors, and these as arrays, which Ray keeps in shared memory.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> data, weights = packed_model(model)
        >>> unpacked_model(data, weights).fingerprint() == model.fingerprint()
        True
    """
    from ray import cloudpickle

    weights: _Weights = []
    known: dict[int, tuple[str, Tensor]] = {}  # with the tensor itself, so that no other one gets its identity

    class Packer(cloudpickle.CloudPickler):  # pyright: ignore[reportPrivateImportUsage]
        def persistent_id(self, one: Any) -> str | None:
            if type(one) not in (Tensor, nn.Parameter):
                return None
            if id(one) not in known:
                known[id(one)] = str(len(weights)), one
                flat = one.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                learned = one.requires_grad if isinstance(one, nn.Parameter) else None
                weights.append((flat.numpy(), one.dtype, tuple(one.shape), learned))
            return known[id(one)][0]

    file = io.BytesIO()
    Packer(file, protocol=5).dump(model)
    return file.getvalue(), weights


def unpacked_model(data: bytes, weights: _Weights, device: str = "cpu") -> Any:
    """The reverse of :func:`packed_model`.

    Args:
        data: the model without its tensors.
        weights: the tensors; on the CPU parameters are not copied.
        device: where they go.

    Raises:
        EngineError: they do not fit there.
    """
    size = sum(array.nbytes for array, *_ in weights)
    if device != "cpu":
        check_fits(size, _free_on_gpu())
    return unpacked(data, {str(place): _tensor(*one, device) for place, one in enumerate(weights)})


def _free_on_gpu() -> int:
    """Bytes that are free, those of the model before included, which torch keeps for what comes."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def check_fits(size: int, free: int) -> None:
    """Refuse a model that is larger than what is free.

    Raises:
        EngineError: it is.

    Example:
        >>> check_fits(2**34, 2**33)
        Traceback (most recent call last):
        mechrep.errors.EngineError: given: a model of 16.0 GiB for a GPU with 8.0 GiB free; ...
    """
    if size > free:
        raise EngineError(
            f"a model of {size / 2**30:.1f} GiB for a GPU with {free / 2**30:.1f} GiB free",
            "a GPU that holds it",
            "load it in a smaller dtype, or use larger GPUs",
        )


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], learned: bool | None, device: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # shared memory is read-only, and nobody writes into weights
        tensor = torch.from_numpy(array).view(dtype).reshape(shape)
    if learned is None:  # buffers are small, and some models do write into them
        return tensor.clone().to(device)
    return nn.Parameter(tensor.to(device), requires_grad=learned)


# --- in a worker ------------------------------------------------------------------------------------------------------


def _worker_class() -> type:
    """A class that is sent by value: a worker without mechrep can say that it lacks it."""

    class Worker:
        def hello(self, threads: int) -> tuple[str, dict[str, str]]:
            """The node, and versions of what decides numbers there."""
            import importlib

            import ray

            versions = {}
            for name in ("mechrep", "torch", "transformers"):
                try:
                    versions[name] = str(importlib.import_module(name).__version__)
                except ModuleNotFoundError:
                    versions[name] = "that is not installed"
            if versions["torch"][:1].isdigit():
                importlib.import_module("torch").set_num_threads(threads)
            return ray.util.get_node_ip_address(), versions

        def work(self, *order: Any) -> tuple[Any, float]:
            """Compute a shard."""
            import importlib

            return importlib.import_module("mechrep.ray_engine").BENCH.do(*order)  # this module, over there

    for name in ("hello", "work"):  # without what may have been wrapped around them here
        setattr(Worker, name, inspect.unwrap(vars(Worker)[name]))
    return Worker


class Bench:
    """What a worker keeps at hand: the last model, and the last job."""

    def __init__(self) -> None:
        self.model: tuple[str, Any] | None = None
        self.job: tuple[str, Any] | None = None

    def do(
        self, model_key: str, model_ref: list[Any], job_key: str, job_ref: list[Any], shard: Any
    ) -> tuple[Any, float]:
        """The answer of a shard, and the seconds that it took."""
        import ray

        if self.model is None or self.model[0] != model_key:
            self.model = self.job = None
            device = "cuda" if ray.get_gpu_ids() else "cpu"
            data, weights = ray.get(model_ref[0])
            self.model = model_key, unpacked_model(data, weights, device)
        if self.job is None or self.job[0] != job_key:
            self.job = job_key, unpacked(ray.get(job_ref[0]), {"model": self.model[1]})
        begun = time.monotonic()
        answer = self.job[1].do(shard)
        return answer, time.monotonic() - begun


BENCH = Bench()
