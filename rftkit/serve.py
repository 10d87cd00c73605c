"""OpenAI's fine-tuning API on this machine: files, jobs, graders and the tuned models.

State is files alone: a restart loses nothing, and a person can read it.

    files/ID/     meta.json (the API's object), content.jsonl
    jobs/ID/      job.json (the API's object), request.json, files.json, pid, output.txt, run/

One thread trains the jobs one after the other, each in a `rftkit train` process. A server that was
killed finds that process again, or resumes its run.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from fastapi import Depends, FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rftkit.files import UserError, read_json, read_text, write_json
from rftkit.graders.grader import Grader
from rftkit.graders.spec import shape, validate_spec
from rftkit.job import job_config
from rftkit.job_file import Record, part, read_job
from rftkit.logs import read_lines
from rftkit.policy import load_policy
from rftkit.records import SamplingConfig

MOST_BYTES = 512 * 1024**2  # of an upload: OpenAI's limit for a fine-tuning file
OPEN = ("queued", "running", "paused")
ID = re.compile(r"(file|ftjob)-[0-9a-f]{24}")
COMMAND = "from rftkit.cli import main; main()"  # `rftkit`, wherever it is installed
TEXT = shape(type=Literal["text"], text=str)
ROLE = Literal["system", "developer", "user", "assistant"]
LIMIT = (Annotated[int, Field(ge=1)] | None, None)
CHAT = shape(  # what chat honours of the API's request
    model=str, seed=(int | None, None), stream=(Literal[False], False),  # for streams, vLLM
    messages=Annotated[list[shape(role=ROLE, content=str | list[TEXT])], Field(min_length=1)],
    temperature=(Annotated[float, Field(ge=0, le=2)], 1.0), n=(Annotated[int, Field(ge=1)], 1),
    top_p=(Annotated[float, Field(gt=0, le=1)], 1.0), max_completion_tokens=LIMIT, max_tokens=LIMIT,
)  # fmt: skip
RUN = shape(grader=Record, item=(Record | None, None), model_sample=(str, ""))  # a file would run
TOKEN = "RFTKIT_TOKEN"  # environment variable; where it is set, clients must send it as api_key


class ApiError(Exception):
    """An error in the API's shape."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.param = status, param


class Service:
    """The state in a folder, and the thread that trains."""

    def __init__(self, folder: str | Path, model: str | None = None, judges: Sequence[str] = ()):
        self.folder, self.model, self.judges = Path(folder), model, judges
        self.changed, self.lock = threading.Event(), threading.RLock()
        self.answering = threading.Lock()
        self.stopping = False
        for name in ("files", "jobs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop. A running job keeps a checkpoint, and the next start resumes it."""
        self.stopping = True
        for job in self.all("jobs", "job.json"):
            if job["status"] == "running" and (process := self.process(job["id"])):
                process.send_signal(signal.SIGINT)
        self.changed.set()
        self.thread.join()

    def place(self, what: str, name: str) -> Path:
        """The folder of a file or job. An id that the service did not give is no path."""
        place = self.folder / what / name
        if not ID.fullmatch(name) or not place.is_dir():
            raise ApiError(404, f"no {what[:-1]} {name!r}", "id")
        return place

    def all(self, what: str, record: str) -> list[Record]:
        """Every file's or job's object, the newest first."""
        found = [read_json(path) for path in (self.folder / what).glob(f"*/{record}")]
        return sorted(found, key=lambda entry: (entry["created_at"], entry["id"]), reverse=True)

    def job(self, name: str) -> Record:
        return read_json(self.place("jobs", name) / "job.json")

    def update(self, name: str, **changes: Any) -> Record:
        with self.lock:
            job = self.job(name) | changes
            write_json(self.place("jobs", name) / "job.json", job)
            return job

    def create(self, request: Record) -> Record:
        """A job from the arguments of jobs.create; ApiError or UserError where it cannot run."""
        name = f"ftjob-{secrets.token_hex(12)}"
        place = self.folder / "jobs" / name
        files = {
            request[field]: f"../../files/{request[field]}/content.jsonl"
            for field in ("training_file", "validation_file")
            if isinstance(request.get(field), str) and self.place("files", request[field])
        }
        place.mkdir()
        try:
            write_json(place / "request.json", request)
            write_json(place / "files.json", files)
            part(read_job(place / "request.json"), "method", "reinforcement", "grader")  # no file
            judges = dict(pair.split("=", 1) for pair in self.judges)
            config, mapped = job_config(place / "request.json", place, self.model, judges)
        except BaseException as error:
            shutil.rmtree(place)
            if isinstance(error, UserError):  # the client knows nothing of that folder
                text = str(error).replace(f"{place / 'request.json'}: ", "")
                raise UserError(text.replace(str(place), "the job")) from None
            raise
        (place / "output.txt").write_text("".join(f"{line}\n" for line in mapped))
        known = {key: request.get(key) for key in ("training_file", "validation_file", "method")}
        job = {"id": name, "object": "fine_tuning.job", "created_at": int(time.time())}
        job |= {"model": config.model, "status": "queued", "seed": config.seed, **known}
        job |= {"fine_tuned_model": None, "finished_at": None, "error": None, "result_files": []}
        job |= {"hyperparameters": {}, "organization_id": "local", "trained_tokens": None}
        job |= {"metadata": request.get("metadata"), "user_provided_suffix": request.get("suffix")}
        write_json(place / "job.json", job)
        self.changed.set()
        return job

    def move(self, name: str, to: str) -> Record:
        """Cancel, pause or resume a job; a step's checkpoint is what it keeps."""
        with self.lock:
            status = self.job(name)["status"]
            allowed = {"cancelled": OPEN, "paused": OPEN[:2], "queued": ("paused",)}[to]
            if status not in allowed:
                raise ApiError(400, f"job {name} is {status}, expected {' or '.join(allowed)}")
            finished = int(time.time()) if to == "cancelled" else None
            job = self.update(name, status=to, finished_at=finished)
            if process := self.process(name):
                process.send_signal(signal.SIGINT)
        self.changed.set()
        return job

    def process(self, name: str) -> psutil.Process | None:
        """The process that trains a job, whoever started it."""
        try:
            process = psutil.Process(int((self.place("jobs", name) / "pid").read_text()))
            alive = process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline())
        except (OSError, ValueError, psutil.Error):
            return None
        return process if alive else None

    def work(self) -> None:
        """Train the open jobs, the oldest first, until the service stops."""
        while not self.stopping:
            self.changed.clear()
            jobs = [job for job in self.all("jobs", "job.json") if job["status"] in OPEN[:2]]
            jobs.sort(key=lambda job: (job["status"] != "running", job["created_at"]))
            if jobs:
                self.train(jobs[0]["id"])
            else:
                self.changed.wait()

    def train(self, name: str) -> None:
        place = self.place("jobs", name)
        command = [sys.executable, "-c", COMMAND, "train", str(place / "request.json")]
        command += ["--files", str(place), "--out", str(place / "run")]
        command += ["--model", self.model] if self.model else []
        command += [word for pair in self.judges for word in ("--judge", pair)]
        child = None
        with self.lock:
            if self.job(name)["status"] not in OPEN[:2]:  # paused or cancelled this moment
                return
            if not self.process(name):
                with open(place / "output.txt", "a") as output:
                    kept = dict(stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
                    child = subprocess.Popen(command, start_new_session=True, **kept)
                (place / "pid").write_text(str(child.pid))
                self.update(name, status="running")
        while self.process(name) and not self.stopping:
            time.sleep(0.1)
        if self.stopping:
            return
        code = child.wait() if child else None
        with self.lock:
            job = self.job(name)
            if job["status"] != "running":  # paused or cancelled meanwhile
                return
            ended = {"finished_at": int(time.time())}
            if code is None or code == 130:  # of another server, or interrupted from outside
                self.update(name, status="queued")
            elif (place / "run" / "training.json").exists():
                parts = ("ft", job["model"], job["user_provided_suffix"], name)
                tuned = ":".join(filter(None, parts))
                self.update(name, status="succeeded", fine_tuned_model=tuned, **ended)
            else:
                text = "".join(read_text(place / "output.txt").strip().splitlines()[-1:])
                if code == 3:  # the gate's
                    found = read_json(place / "run" / "gate.json")["findings"]
                    text = "; ".join("{name}: {evidence}; change {knob}".format(**f) for f in found)
                error = {"code": f"exit_{code}", "message": text, "param": None}
                self.update(name, status="failed", error=error, **ended)

    def events(self, name: str) -> list[Record]:
        """What happened, the newest first: the log's steps, and how the job stands."""
        job = self.job(name)
        events = read_lines(self.place("jobs", name) / "run" / "events.jsonl")
        text = f"The job is {job['status']}"
        text += f": {job['error']['message']}" if job["error"] else ""
        state = {"object": "fine_tuning.job.event", "id": f"ftevent-{job['status']}"}
        state |= {"created_at": job["finished_at"] or job["created_at"], "type": "message"}
        state |= {"level": "error" if job["error"] else "info", "message": text, "data": None}
        return [state, *reversed(events)]

    def checkpoints(self, name: str) -> list[Record]:
        """The best by validation, the newest first."""
        run, job = self.place("jobs", name) / "run", self.job(name)
        log = {record["step"]: record for record in read_lines(run / "log.jsonl")}
        found = []
        for path in sorted((run / "checkpoints" / "best").glob("step-*"), reverse=True):
            step = int(path.name.removeprefix("step-"))
            validation = log.get(step, {}).get("validation") or {}
            metrics = {"step": step, "valid_reward_mean": validation.get("grade")}
            metrics |= {"train_reward_mean": log.get(step, {}).get("reward_mean")}
            entry = {"object": "fine_tuning.job.checkpoint", "id": f"ftckpt-{name}-{step}"}
            entry |= {"created_at": int(path.stat().st_mtime), "fine_tuning_job_id": name}
            model = f"ft:{job['model']}:{name}:ckpt-step-{step}"
            entry |= {"fine_tuned_model_checkpoint": model, "metrics": metrics}
            found.append(entry | {"step_number": step})
        return found

    def chat(self, request: CHAT) -> Record:
        """An answer of a tuned model or a checkpoint, for trying it. For load, serve it by vLLM."""
        model = request.model
        name, adapters = model.partition(":ckpt-step-")[0].rpartition(":")[2], {}
        if ID.fullmatch(name):
            run, best = self.place("jobs", name) / "run", "checkpoints/best/step-{:06d}"
            adapters = {self.job(name)["fine_tuned_model"]: run} | {
                entry["fine_tuned_model_checkpoint"]: run / best.format(entry["step_number"])
                for entry in self.checkpoints(name)
            }
        if model not in adapters:
            raise ApiError(404, f"no tuned model {model!r}: a finished job names it", "model")
        limit = request.max_completion_tokens or request.max_tokens
        limit = limit or read_json(run / "plan.json")["max_completion_tokens"]
        seed = request.seed or secrets.randbits(31)
        sampling = SamplingConfig(request.temperature, request.top_p, limit, seed=seed)
        texts = ["".join(getattr(p, "text", p) for p in m.content) for m in request.messages]
        messages = [{"role": m.role, "content": t} for m, t in zip(request.messages, texts)]
        with self.answering:
            policy = tuned_policy(str(adapters[model]))
            [samples] = policy.sample([messages], request.n, sampling)
        prompt, drawn = samples[0].prompt_tokens, sum(s.completion_tokens for s in samples)
        usage = {"prompt_tokens": prompt, "completion_tokens": drawn}
        usage |= {"total_tokens": prompt + drawn}
        choices = []
        for i, s in enumerate(samples):
            message = {"content": s.output_text, "reasoning_content": s.reasoning}
            choice = {"index": i, "finish_reason": s.finish_reason, "logprobs": None}
            choices.append(choice | {"message": {"role": "assistant"} | message})
        record = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion"}
        record |= {"created": int(time.time()), "model": model}
        return record | {"choices": choices, "usage": usage}


tuned_policy = lru_cache(1)(load_policy)  # the last one that chat asked


def page(entries: list[Record], after: str | None = None, limit: int = 20) -> Record:
    """A page of a list in the API's shape, from behind the entry `after`."""
    ids = [entry["id"] for entry in entries]
    entries = entries[ids.index(after) + 1 :] if after in ids else entries
    return {"object": "list", "data": entries[:limit], "has_more": len(entries) > limit}


def known_client(request: Request) -> None:
    token, sent = os.environ.get(TOKEN), request.headers.get("authorization", "")
    if token and not secrets.compare_digest(sent.encode(), f"Bearer {token}".encode()):
        raise ApiError(401, f"no valid api_key: send the value of {TOKEN}")


def build_app(service: Service) -> FastAPI:
    """The routes of the official client under /v1, for this machine's own names alone."""
    app = FastAPI(title="rftkit", dependencies=[Depends(known_client)])
    jobs, alpha = "/v1/fine_tuning/jobs", "/v1/fine_tuning/alpha/graders"
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def bounded(request: Request, call_next: Any) -> Any:
        size = request.headers.get("content-length", "0" if request.method == "GET" else None)
        if request.method == "POST" and size is None:
            return failure(ApiError(411, "no Content-Length"))
        if int(size or 0) > MOST_BYTES:
            return failure(ApiError(413, f"{size} bytes, expected {MOST_BYTES} at most", "file"))
        return await call_next(request)

    def failure(error: Exception) -> JSONResponse:
        status, text = getattr(error, "status", getattr(error, "status_code", 400)), str(error)
        if isinstance(error, RequestValidationError):  # its text names files of the server
            faults = [(*map(str, f["loc"][1:]), f["msg"]) for f in error.errors()]
            text = "; ".join(map(": ".join, faults))
        elif not isinstance(error, ApiError | UserError | HTTPException):
            status, text = 500, f"{type(error).__name__}: the server's output says where"
        kind = "invalid_request_error" if status < 500 else "server_error"
        record = {"message": text, "type": kind, "param": getattr(error, "param", None)}
        return JSONResponse({"error": record | {"code": None}}, status)

    for kind in (ApiError, UserError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, lambda request, error: failure(error))

    @app.post("/v1/files")
    def upload(file: UploadFile, request: Request) -> Record:
        name = f"file-{secrets.token_hex(12)}"
        place = service.folder / "files" / name
        place.mkdir()
        with open(place / "content.jsonl", "wb") as content:
            shutil.copyfileobj(file.file, content)
        meta = {"id": name, "object": "file", "bytes": (place / "content.jsonl").stat().st_size}
        meta |= {"created_at": int(time.time()), "filename": Path(file.filename or name).name}
        meta |= {"purpose": "fine-tune", "status": "processed"}
        write_json(place / "meta.json", meta)
        return meta

    @app.get("/v1/files")
    def list_files(after: str | None = None, limit: int = 100) -> Record:
        return page(service.all("files", "meta.json"), after, limit)

    @app.get("/v1/files/{name}")
    def get_file(name: str) -> Record:
        return read_json(service.place("files", name) / "meta.json")

    @app.get("/v1/files/{name}/content")
    def get_content(name: str) -> FileResponse:
        return FileResponse(service.place("files", name) / "content.jsonl")

    @app.delete("/v1/files/{name}")
    def delete_file(name: str) -> Record:
        used = [job for job in service.all("jobs", "job.json") if job["status"] in OPEN]
        if any(name in (job["training_file"], job["validation_file"]) for job in used):
            raise ApiError(409, f"{name}: a job needs it: cancel the job first")
        shutil.rmtree(service.place("files", name))
        return {"id": name, "object": "file", "deleted": True}

    app.post(jobs)(service.create)
    app.get(jobs + "/{name}")(service.job)
    app.post("/v1/chat/completions")(service.chat)

    @app.get(jobs)
    def list_jobs(after: str | None = None, limit: int = 20) -> Record:
        return page(service.all("jobs", "job.json"), after, limit)

    @app.post(jobs + "/{name}/{verb}")
    def move_job(name: str, verb: Literal["cancel", "pause", "resume"]) -> Record:
        return service.move(name, {"cancel": "cancelled", "pause": "paused"}.get(verb, "queued"))

    @app.get(jobs + "/{name}/events")
    def list_events(name: str, after: str | None = None, limit: int = 20) -> Record:
        return page(service.events(name), after, limit)

    @app.get(jobs + "/{name}/checkpoints")
    def list_checkpoints(name: str, after: str | None = None, limit: int = 10) -> Record:
        return page(service.checkpoints(name), after, limit)

    @app.post(f"{alpha}/run")
    def run_grader(request: RUN) -> Record:
        return Grader.load(request.grader).run(request.item, request.model_sample)

    @app.post(f"{alpha}/validate")
    def validate_grader(request: dict[str, Any]) -> Record:
        return {"grader": validate_spec(request.get("grader"))[0]}

    return app


def serve(folder: Path, port: int, model: str | None, judges: Sequence[str]) -> None:
    """Serve a folder on this machine alone until Ctrl-C."""
    import uvicorn

    service = Service(folder, model, judges)
    try:
        uvicorn.run(build_app(service), host="127.0.0.1", port=port, log_level="warning")
    finally:
        service.close()
