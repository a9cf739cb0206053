"""The audit's side: interpreters, the processes in them, and proxies that fulfil `Adapter`.

A process that ends (a crash) or does not answer within the timeout is stopped with all that it started; the case at
hand gets `Broken`, and the next one a new process. After `PATIENCE` timeouts of one operation the framework is not
asked it again, and the remaining cases say so.

The adapters of one file share a process; those of another file, or with other variables, have their own, so that
one framework's crash is not taken for another's. The process starts with the first question.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from refbn._errors import RefbnError
from refbn.audit.adapters._protocol import Array, Broken, Inputs, Unsupported
from refbn.audit.remote import wire
from refbn.dialects import Dialect

__all__ = ["PATIENCE", "TIMEOUT", "Interpreter", "InterpreterError", "Remote"]

TIMEOUT = 120.0
"""How many seconds a worker has for one case, compilation and the framework's import included."""
START = 120.0
"""How many seconds an interpreter has to start and to load an adapter, if `TIMEOUT` is less."""
PATIENCE = 3
"""How many timeouts of one operation are waited for."""

_START = Path(__file__).with_name("start.py")
_WORDS = 4096  # bytes of a process's last words that are kept

_Reply = tuple[wire.Message, list[bytearray]]


class InterpreterError(RefbnError, RuntimeError):
    """A Python that was named cannot run adapters."""


class Interpreter:
    """A Python in which adapters can run, this one or another.

    Parameters
    ----------
    python : str
        Its program: a path, or a name that the shell would find.
    timeout : float
        Seconds for one case.

    Attributes
    ----------
    version, numpy : str
        Of Python and NumPy.

    Raises
    ------
    InterpreterError
        If it cannot be started, or has no NumPy.
    """

    def __init__(self, python: str, timeout: float = TIMEOUT) -> None:
        self.python = python
        self.timeout = timeout
        self._workers: dict[tuple[str, tuple[tuple[str, str], ...]], _Worker] = {}
        self._first = _Worker(python, {}, timeout)
        hello = self._first.hello()
        self.version: str = hello["python"]
        self.numpy: str = hello["numpy"]

    def adapter(self, path: str, arguments: Sequence[str] = ()) -> Remote:
        """Return a proxy of an adapter by "module:class" and arguments; the framework need not be installed there."""
        declared = self._first.load(path, arguments)
        environment = tuple(sorted(declared["environment"].items()))
        key = (path.partition(":")[0], environment)
        worker = self._workers.setdefault(key, _Worker(self.python, dict(environment), self.timeout))
        return Remote(self, worker, path, arguments, declared)

    @property
    def is_this(self) -> bool:
        """Whether it is the interpreter that runs the audit."""
        return _same_program(self.python)

    def rest(self) -> None:
        """End the process that told what there is; those that run adapters start with their first case."""
        self._first.stop()

    def close(self) -> None:
        """End all processes."""
        for worker in (self._first, *self._workers.values()):
            worker.stop()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Remote:
    """An `Adapter` whose framework lives in another process.

    Attributes
    ----------
    interpreter : Interpreter
        Where it lives.
    note : str
        What cannot be asked there although the framework may offer it, and why; or nothing.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        worker: _Worker,
        path: str,
        arguments: Sequence[str],
        declared: Mapping[str, Any],
    ) -> None:
        self.interpreter = interpreter
        self.name: str = declared["name"]
        self.dialect = Dialect(**declared["dialect"])
        self.operations = frozenset(declared["operations"])
        self.norms = frozenset(declared["norms"])
        self.compiles: bool = declared["compiles"]
        self.dtypes = frozenset(declared["dtypes"])
        self.differentiates_statistics: bool = declared["differentiates_statistics"]
        self.environment: Mapping[str, str] = declared["environment"]
        left_out = ", ".join(declared["left_out"])
        self.note = f"{left_out} is not asked: ml_dtypes is not installed there" if left_out else ""
        self._version: str | None = declared["version"]
        self._worker = worker
        self._path, self._arguments = path, tuple(arguments)
        self._timeouts: Counter[str] = Counter()

    def version(self) -> str | None:
        """Return the version that is installed there, or None."""
        return self._version

    def set_threads(self, count: int) -> None:
        """See `Adapter.set_threads`."""
        self._worker.ask(self, {"ask": "set_threads", "count": count})

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        head, parts = wire.pack_inputs(inputs)
        reply, _ = self._worker.ask(self, {"ask": "reproduction", "operation": operation, "inputs": head}, parts)
        text: str = reply["text"]
        return text

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation there; what it changes in its inputs changes here.

        Raises
        ------
        Unsupported
            As `Adapter.run`.
        Broken
            If the process ended, or did not answer in time.
        Exception
            Of a class with the name of the framework's own exception.
        """
        if self._timeouts[operation] >= PATIENCE:
            raise Broken(f"not asked: {operation} did not end within {self._worker.timeout:g} s {PATIENCE} times")
        head, parts = wire.pack_inputs(inputs)
        arrays = wire.flatten(inputs)
        request = {"ask": "run", "operation": operation, "inputs": head}
        try:
            reply, received = self._worker.ask(self, request, parts, arrays)
        except _TimeoutError:
            self._timeouts[operation] += 1
            raise
        return wire.unpack_outputs(reply["answer"], received)

    def load(self) -> wire.Message:
        """Return the request that loads this adapter in a new process."""
        return {"ask": "load", "adapter": self._path, "arguments": self._arguments}

    @property
    def key(self) -> str:
        """How the worker calls this adapter."""
        return f"{self._path}{list(self._arguments)}"


class _TimeoutError(Broken):
    pass


class _Worker:
    """A process of one interpreter, started when there is something to ask and as often as it has ended."""

    def __init__(self, python: str, environment: Mapping[str, str], timeout: float) -> None:
        self.timeout = timeout
        self._python = python
        self._environment = environment
        self._process: _Process | None = None
        self._loaded: set[str] = set()
        self._threads: dict[str, int] = {}

    def hello(self) -> wire.Message:
        """Start the process, and return what it says of itself."""
        if self._process is None:
            self._process = _Process(self._python, self._environment)
            self._loaded.clear()
            try:
                self._process.told = self._receive(max(self.timeout, START))[0]
            except Broken as error:
                raise InterpreterError(f"{self._python} cannot run adapters: {error}", argument="python") from error
        return self._process.told

    def load(self, path: str, arguments: Sequence[str]) -> wire.Message:
        """Load an adapter, and return what it declares."""
        self.hello()
        request = {"ask": "load", "adapter": path, "arguments": list(arguments)}
        reply, _ = self._exchange(request, timeout=START)
        declared: wire.Message = _result(reply)["declared"]
        return declared

    def ask(
        self,
        adapter: Remote,
        request: wire.Message,
        parts: Sequence[wire.Part] = (),
        arrays: Mapping[str, Array] | None = None,
    ) -> _Reply:
        """Ask one adapter something; write what it changed back into `arrays`."""
        self._make_ready(adapter)
        if request["ask"] == "set_threads":
            self._threads[adapter.key] = request["count"]
        reply, received = self._exchange({**request, "adapter": adapter.key}, parts)
        count = len(reply.get("answer", ()))
        for name, part in zip(reply.get("changed", ()), received[count:], strict=True):
            wire.memory((arrays or {})[name])[:] = part
        return _result(reply), received[:count]

    def _make_ready(self, adapter: Remote) -> None:
        self.hello()
        if adapter.key not in self._loaded:
            _result(self._exchange(adapter.load(), timeout=START)[0])
            self._loaded.add(adapter.key)
            if adapter.key in self._threads:  # an earlier process was told
                again = {"ask": "set_threads", "adapter": adapter.key, "count": self._threads[adapter.key]}
                self._exchange(again)

    def _exchange(self, request: wire.Message, parts: Sequence[wire.Part] = (), timeout: float = 0.0) -> _Reply:
        assert self._process is not None
        self._process.last_words.clear()
        with contextlib.suppress(OSError):  # it has ended, as the answer that does not come will tell
            wire.send(self._process.requests, request, parts)
        return self._receive(max(self.timeout, timeout))

    def _receive(self, timeout: float) -> _Reply:
        assert self._process is not None
        try:
            reply = self._process.replies.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            raise _TimeoutError(f"timeout: no answer within {timeout:g} s") from None
        if reply is None:
            end = self._process.end()
            self.stop()
            raise Broken(f"crash: {end}")
        return reply

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stop()
            self._process = None


class _Process:
    """One running worker and the two threads that read from it."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        variables = {**os.environ, **environment}
        if not _same_program(python):  # what is meant for this Python would mislead another
            for name in ("PYTHONHOME", "PYTHONPATH"):
                if name not in environment:
                    variables.pop(name, None)
        try:
            process = subprocess.Popen(
                [python, str(_START)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=variables,
                start_new_session=True,  # so that all that it starts can be ended with it
            )
        except OSError as error:
            raise InterpreterError(f"{python}: {error.strerror}", argument="python") from error
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self.requests: BinaryIO = process.stdin  # type: ignore[assignment]  # opened in binary mode
        self.replies: queue.SimpleQueue[_Reply | None] = queue.SimpleQueue()
        self.last_words = bytearray()
        self.told: wire.Message = {}
        self._process = process
        self._readers = [
            threading.Thread(target=target, args=(stream, kept), daemon=True)
            for target, stream, kept in (
                (_read_replies, process.stdout, self.replies),
                (_keep_words, process.stderr, self.last_words),
            )
        ]
        for reader in self._readers:
            reader.start()
        self.stop = weakref.finalize(self, _stop, process, self._readers)

    def end(self) -> str:
        """Return how the process ended, in words."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._readers[1].join(timeout=5)
        if code < 0:
            try:
                how = f"the process was ended by {signal.Signals(-code).name}"
            except ValueError:
                how = f"the process was ended by signal {-code}"
        else:
            how = f"the process ended with status {code}"
        words = bytes(self.last_words).decode(errors="replace").strip()
        return f"{how}: {words.splitlines()[-1].strip()[:200]}" if words else how


def _stop(process: subprocess.Popen[bytes], readers: Sequence[threading.Thread]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    for reader in readers:
        reader.join(timeout=5)


def _read_replies(stream: BinaryIO, replies: queue.SimpleQueue[_Reply | None]) -> None:
    with stream:
        try:
            while (message := wire.receive(stream)) is not None:
                replies.put(message)
        except (EOFError, ValueError):  # it ended while it wrote, or is no worker
            pass
        finally:
            replies.put(None)


def _keep_words(stream: BinaryIO, kept: bytearray) -> None:
    with stream:
        while words := stream.read1():  # type: ignore[attr-defined]
            kept += words
            del kept[:-_WORDS]


def _same_program(python: str) -> bool:
    return os.path.abspath(python) == os.path.abspath(sys.executable)


def _result(reply: wire.Message) -> wire.Message:
    """Return a reply that is one, or raise what the adapter raised."""
    if "unsupported" in reply:
        raise Unsupported(reply["unsupported"])
    if "raised" in reply:
        raise type(reply["raised"], (Exception,), {})(reply["text"])
    return reply
